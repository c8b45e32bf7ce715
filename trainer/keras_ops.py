"""What Keras's layers compute otherwise in our graphs: random numbers, and grouped convolutions."""

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from trainer import layers


def key(seed: Any) -> tf.Tensor:
    """The state of a Keras generator for draws that are not by example: by seed, step and name."""
    name = zlib.crc32(seed.path.encode()) % 2**31
    replica = layers.current_replica()
    if replica is None:
        return tf.constant([name, 0], seed.dtype)
    return tf.cast(tf.stack([(replica.seed + name) % 2**31, replica.step % 2**31]), seed.dtype)


@contextlib.contextmanager
def replaced(batch: int | None) -> Iterator[None]:
    """Within this context Keras draws random numbers by example, and compiles no convolution.

    Tensors are compared by value, as in Keras's own graphs: outside of functions TensorFlow would
    compare the objects, without an error.

    Args:
      batch: examples in the batch if known, else None.
    """
    from keras.src.backend.tensorflow import nn, random

    uniform, conv = random.uniform, nn.conv

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

    def equal(x, y):
        return False if y is None else tf.equal(x, y)

    def unequal(x, y):
        return True if y is None else tf.not_equal(x, y)

    ours = [
        (random, "uniform", draw),
        (random, "dropout", dropout),
        (nn, "conv", convolve),
        (tf.Tensor, "__eq__", equal),
        (tf.Tensor, "__ne__", unequal),
    ]
    with contextlib.ExitStack() as at_end:
        for place, name, function in ours:
            at_end.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, function)
        yield


def _static(size):
    value = tf.get_static_value(size) if tf.is_tensor(size) else size
    return None if value is None else int(value)


def _pair(value):
    return [value, value] if isinstance(value, int) else list(value)


def _grouped(inputs, kernel, groups, strides, padding, dilations):
    """A convolution in groups of channels: [B, H, W, C], kernel [h, w, C / groups, filters].

    Keras compiles it by XLA on CPU, which works on the first CPU device alone.
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
