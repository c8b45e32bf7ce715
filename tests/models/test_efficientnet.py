"""The network against PyTorch's, with weights drawn from seeds; make_oracle.py says how."""

import json
import math
import pathlib
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf

from models.backbones import efficientnet, pretrained

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import rounding

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
ORACLE = json.loads(pathlib.Path(__file__).with_name("oracle.json").read_text())
THEIRS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}


def picture(height, width):
    y, x, c = np.ogrid[:height, :width, :3]
    return ((2 * y + x + 70 * c + x * y // 40) % 256).astype(np.uint8)[None]


def draw(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "bn0.weight", "bn1.weight", "bn2.weight")):
        return random.uniform(0.5, 1.5, shape)
    if len(shape) < 2:
        return random.normal(0, 0.1, shape)
    return random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)


def their_name(ours):
    """The entry of PyTorch's state dict that one of our variables comes from."""
    place, _, entry = ours.rpartition("/")
    if place == "logits":
        return "_fc.weight" if entry == "kernel" else "_fc.bias"
    norm = place.endswith("/norm")
    place = place.removesuffix("/norm")
    end = THEIRS.get(entry, "running_var" if norm else "weight")
    if place in ("stem", "head"):
        module = f"_conv_{place}" if not norm else {"stem": "_bn0", "head": "_bn1"}[place]
        return f"{module}.{end}"
    block, part = place.split("/")
    number = int(block.removeprefix("blocks_"))
    if not norm:
        return f"_blocks.{number}._{part}_conv.{end}"
    # There, a block's norms are numbered over all three parts, though the first block has no first.
    order = ["expand", "depthwise", "project"].index(part)
    return f"_blocks.{number}._bn{order}.{end}"


def drawn_state(name):
    state = {"_bn0.num_batches_tracked": np.array(0)}
    for ours, shape in pretrained.shapes(name).items():
        theirs = their_name(ours)
        if ours == "logits/kernel":
            shape = shape[::-1]
        elif len(shape) == 4:  # [h, w, in, out] -> [out, in, h, w], depthwise [h, w, c, 1]
            h, w, a, b = shape
            shape = [a, b, h, w] if "depthwise" in ours else [b, a, h, w]
        state[theirs] = draw(theirs, tuple(shape)).astype(np.float32)
    return state


@pytest.mark.parametrize("vector", ORACLE["drawn"][:3], ids=lambda v: v["name"])
def test_a_variant_has_the_size_of_pytorchs(vector):
    sizes = [math.prod(shape) for shape in pretrained.shapes(vector["name"]).values()]
    assert sum(sizes) == vector["parameters"]


def test_the_largest_variant_computes_what_pytorch_computes():
    vector = ORACLE["drawn"][3]
    name = vector["name"]
    arrays = pretrained.variables_of(name, drawn_state(name))
    assert sum(array.size for array in arrays.values()) == vector["parameters"]
    exact = rounding.outputs(name, arrays, picture(64, 48))
    for found, key in zip(exact, ("features", "logits"), strict=True):
        np.testing.assert_allclose(found[0, ::32], vector[key], rtol=0, atol=rounding.DECIMALS)
    tolerances = rounding.float32_tolerances(name, arrays, picture(64, 48), exact)
    single = rounding.outputs(name, arrays, picture(64, 48), tf.float32)
    for found, wanted, tolerance in zip(single, exact, tolerances, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def test_pixels_are_normalised_as_the_weights_were_trained():
    pixels = np.array([0, 127, 255], np.uint8)
    expected = [-127 / 128, 0, 1]
    for dtype in (np.uint8, np.float32):
        assert (
            efficientnet.normalise(tf.constant(pixels.astype(dtype))).numpy().tolist() == expected
        )


def test_sizes_of_the_variants():
    sides = [v.image_size for v in efficientnet.VARIANTS.values()]
    assert sides == [224, 240, 260, 280, 300]
    assert [len(efficientnet.blocks(name)) for name in efficientnet.VARIANTS] == [
        16,
        21,
        21,
        24,
        30,
    ]


def test_folded_averages_equal_batch_norm_with_them_and_let_gradients_through():
    """In training with frozen averages the scale and offset still learn."""
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 6, 6, 8)).astype(np.float32))
    with tf.Graph().as_default(), v1.Session() as session:
        x = tf.constant(x.numpy())
        y = efficientnet._convolve(x, "layer", 4, 3, 1, False)
        d = efficientnet._convolve(x, "depthwise", None, 3, 2, False)
        session.run(v1.global_variables_initializer())
        random = np.random.default_rng(1)
        for v in v1.global_variables():
            v.load(random.uniform(0.5, 1.5, v.shape).astype(np.float32), session)
        values = {v.op.name: v for v in v1.global_variables()}

        def plain(scope, convolved):
            norm = [values[f"{scope}/norm/{n}"] for n in ("moving_mean", "moving_variance")]
            mean, variance = (tf.stop_gradient(tf.identity(v)) for v in norm)
            beta, gamma = (values[f"{scope}/norm/{n}"] for n in ("beta", "gamma"))
            return tf.nn.batch_normalization(convolved, mean, variance, beta, gamma, 1e-3)

        kernel, taps = values["layer/kernel"], values["depthwise/kernel"]
        expected = (
            plain("layer", tf.nn.conv2d(x, kernel, 1, "SAME")),
            plain("depthwise", tf.nn.depthwise_conv2d(x, taps, [1, 2, 2, 1], "SAME")),
        )
        trained = v1.trainable_variables()
        assert len(trained) == 6
        ours = v1.gradients([tf.nn.l2_loss(y), tf.nn.l2_loss(d)], trained)
        theirs = v1.gradients([tf.nn.l2_loss(e) for e in expected], trained)
        for a, b in zip(*session.run([[y, d, *ours], [*expected, *theirs]]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
