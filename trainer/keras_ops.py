"""Replacements for operations of Keras's layers in our graphs.

Random numbers are drawn per example, and grouped convolutions run on any device. Batch norm, GELU
and dense layers are written so that TensorFlow uses fused kernels: same values, less time.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from trainer import layers


def key(seed: Any) -> tf.Tensor:
    """The state of a Keras generator for draws not per example: from seed, step and name."""
    name = zlib.crc32(seed.path.encode()) % 2**31
    replica = layers.current_replica()
    if replica is None:
        return tf.constant([name, 0], seed.dtype)
    return tf.cast(tf.stack([(replica.seed + name) % 2**31, replica.step % 2**31]), seed.dtype)


@contextlib.contextmanager
def replaced(batch: int | None, also: Sequence[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """Within this context Keras's layers use the operations of this module.

    Tensors are compared by value, as in Keras's graphs: outside of functions, TensorFlow would
    silently compare the objects.

    Args:
      batch: number of examples in the batch, None if unknown.
      also: further attributes that have other values: (object, name, value).
    """
    from keras import layers as of_keras
    from keras.src.backend.tensorflow import nn, random

    uniform, conv, gelu = random.uniform, nn.conv, nn.gelu
    norm, dense = of_keras.BatchNormalization.call, of_keras.Dense.call

    def draw(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        first, *rest = (_static(n) for n in shape)
        if first is None and None not in rest:
            drawn = layers.random_uniform(rest, shape[0])
        elif batch and None not in rest and first is not None and first % batch == 0:
            drawn = layers.random_uniform([first // batch, *rest], batch)
        else:
            return uniform(shape, minval, maxval, dtype, seed)
        drawn = tf.reshape(drawn, [shape[0], *rest])
        return tf.cast(minval + (maxval - minval) * drawn, dtype or tf.float32)

    def dropout(inputs, rate, noise_shape=None, seed=None):
        if rate in (0, 1):
            return tf.zeros_like(inputs) if rate else inputs
        shape = tf.shape(inputs)
        sizes = [shape[i] if n is None else n for i, n in enumerate(inputs.shape)]
        sizes = [n if m is None else m for n, m in zip(sizes, noise_shape or sizes, strict=True)]
        keep = draw(sizes, seed=seed) >= rate
        return tf.where(keep, inputs / (1 - rate), tf.zeros([], inputs.dtype))

    def convolve(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
        groups = inputs.shape[-1] // kernel.shape[-2]
        if data_format == "channels_first" or len(kernel.shape) != 4 or groups == 1:
            return conv(inputs, kernel, strides, padding, data_format, dilation_rate)
        strides, dilations = _pair(strides), _pair(dilation_rate)
        return _grouped(inputs, kernel, groups, strides, padding.upper(), dilations)

    def activated(x, approximate=True):
        return gelu(x) if approximate else _exact_gelu(tf.convert_to_tensor(x))

    def normalized(layer, inputs, training=None, mask=None):
        of_maps = len(inputs.shape) == 4 and layer.axis in (-1, 3) and mask is None
        other = layer.synchronized or getattr(layer, "renorm", False) or inputs.dtype.size > 4
        if other or not of_maps:
            return norm(layer, inputs, training=training, mask=mask)
        return _normalized(layer, inputs, training, training and layer.trainable)

    def multiplied(layer, inputs, training=None):
        width = inputs.shape[-1]
        if len(inputs.shape) < 3 or width is None:
            return dense(layer, inputs, training=training)
        # TensorFlow fuses bias and GELU with a matrix product, if its input is not reshaped.
        found = dense(layer, tf.reshape(inputs, [-1, width]), training=training)
        shape = tf.concat([tf.shape(inputs)[:-1], found.shape[1:]], 0)
        return tf.ensure_shape(tf.reshape(found, shape), [*inputs.shape[:-1], found.shape[1]])

    def equal(x, y):
        return False if y is None else tf.equal(x, y)

    def unequal(x, y):
        return True if y is None else tf.not_equal(x, y)

    ours = [
        (random, "uniform", draw),
        (random, "dropout", dropout),
        (nn, "conv", convolve),
        (nn, "gelu", activated),
        (of_keras.BatchNormalization, "call", normalized),
        (of_keras.Dense, "call", multiplied),
        (tf.Tensor, "__eq__", equal),
        (tf.Tensor, "__ne__", unequal),
        *also,
    ]
    with contextlib.ExitStack() as at_end:
        for place, name, value in ours:
            at_end.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        yield


def _static(size):
    value = tf.get_static_value(size) if tf.is_tensor(size) else size
    return None if value is None else int(value)


def _pair(value):
    return [value, value] if isinstance(value, int) else list(value)


def _grouped(inputs, kernel, groups, strides, padding, dilations):
    """A convolution in groups of channels: [B, H, W, C], kernel [h, w, C / groups, filters].

    Keras compiles it with XLA on a CPU, which works only on the first CPU device.
    """
    height, width, depth, filters = kernel.shape
    if depth == 1 and strides[0] == strides[1] and 1 in (strides[0], max(dilations)):
        kernel = tf.reshape(kernel, [height, width, groups, filters // groups])
        return tf.nn.depthwise_conv2d(
            inputs, kernel, [1, *strides, 1], padding, dilations=dilations
        )
    parts = zip(tf.split(inputs, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat(
        [tf.nn.conv2d(x, k, strides, padding, dilations=dilations) for x, k in parts], -1
    )


def _exact_gelu(x):
    """GELU by the error function, in the only form for which TensorFlow has a fused kernel."""
    return (tf.math.erf(x * 0.5**0.5) + 1) * 0.5 * x


def _without_bias(x):
    """(convolution, bias [C]) if x is their sum; otherwise (x, 0)."""
    if x.op.type in ("Add", "AddV2", "BiasAdd"):
        inner, bias = x.op.inputs
        if "Conv2" in inner.op.type and bias.shape.num_elements() == x.shape[-1]:
            return inner, tf.reshape(bias, [-1])
    return x, 0.0


def _normalized(layer, inputs, training, by_batch):
    """Batch norm of maps [B, H, W, C] as one operation; Keras uses five or more."""
    inputs = tf.cast(inputs, tf.float32)
    mean, variance = (tf.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_variance))
    scale = tf.ones_like(mean) if layer.gamma is None else tf.convert_to_tensor(layer.gamma)
    offset = tf.zeros_like(mean) if layer.beta is None else tf.convert_to_tensor(layer.beta)
    stored = {} if by_batch else {"mean": mean, "variance": variance}
    if not training:
        # TensorFlow fuses a convolution with its successor if there is no bias in between. In
        # training the bias stays: the operation has no gradient with respect to its mean.
        inputs, bias = _without_bias(inputs)
        stored["mean"] = mean - bias
    outputs, *of_batch = tf.compat.v1.nn.fused_batch_norm(
        inputs, scale, offset, epsilon=layer.epsilon, is_training=by_batch, **stored
    )
    if by_batch:
        # The operation's variance divides by n - 1, Keras's by n.
        count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
        of_batch[1] *= (count - 1) / count
        averages = layer.moving_mean, layer.moving_variance
        for variable, old, new in zip(averages, (mean, variance), of_batch, strict=True):
            variable.assign(old * layer.momentum + new * (1 - layer.momentum))
    return tf.cast(outputs, layer.compute_dtype)
