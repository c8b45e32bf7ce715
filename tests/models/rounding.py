"""EfficientNet in float64, and how far float32 may be from it on any processor."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from models.backbones import efficientnet

v1 = tf.compat.v1
DECIMALS = 1e-8  # what oracle.json's float64 outputs lost when they were written with 8 decimals


def outputs(name, arrays, images, dtype=tf.float64, disturb=False):
    """Runs a network in a dtype of the test's choice.

    Args:
      name: a key of `efficientnet.VARIANTS`.
      arrays: {variable name: array}, as `pretrained.variables_of` returns it.
      images: uint8 [B, H, W, 3].
      dtype: what everything is computed in. Pixels are normalized without rounding in either.
      disturb: move every output of a convolution as far as float32's rounding may, see below.

    Returns:
      (features [B, 1280], logits [B, 1000]).
    """
    normalise, apply = efficientnet.normalise, efficientnet._apply
    seeds = itertools.count()

    def disturbed(x, kernel, filters, strides):
        y = apply(x, kernel, filters, strides)
        terms = math.prod(kernel.shape[:3]) if filters else math.prod(kernel.shape[:2])
        # 3: folding the scale into the kernel, adding the offset, and storing the sum.
        unit = (math.sqrt(terms) + 3) * 2.0**-24
        magnitude = apply(tf.abs(x), tf.abs(kernel), filters, strides)
        draw = tf.random.stateless_uniform(y.shape, [0, next(seeds)], -1, 1, dtype)
        return y + unit * magnitude * tf.sign(draw)

    with (
        pytest.MonkeyPatch.context() as patch,
        tf.Graph().as_default(),
        v1.Session() as session,
        v1.variable_scope("", dtype=dtype),
    ):
        patch.setattr(efficientnet, "normalise", lambda x: tf.cast(normalise(x), dtype))
        if disturb:
            patch.setattr(efficientnet, "_apply", disturbed)
        features = efficientnet.features(tf.constant(images), name, False)
        logits = efficientnet.logits(features)
        variables = v1.global_variables()
        session.run([v.initializer for v in variables], {
            v.initializer.inputs[1]: arrays[v.op.name] for v in variables
        })  # fmt: skip
        return session.run([features, logits])


def float32_tolerances(name, arrays, images, exact):
    """The largest errors (of features, of logits) that float32 may have on any processor.

    However a processor orders and blocks a sum of n products, rounding moves it by about
    sqrt(n) * 2^-24 * sum(|x w|) or less (Higham and Mary 2019, "A new approach to probabilistic
    rounding error analysis"). The float64 network is disturbed by that much in every output of
    every convolution, up or down at random; what reaches the outputs is the tolerance. It follows
    from the weights and the images alone.
    """
    disturbed = outputs(name, arrays, images, disturb=True)
    return [np.abs(d - e).max() for d, e in zip(disturbed, exact, strict=True)]
