"""Keras layers as users write them, which a bridge into graphs must handle or refuse."""

import functools

import keras
import tensorflow as tf


class DropPath(keras.layers.Layer):
    """Drops whole examples, as vision transformers do."""

    def call(self, x, training=None):
        if not training:
            return x
        shape = (keras.ops.shape(x)[0], *(1,) * (len(x.shape) - 1))
        return x * keras.ops.floor(0.5 + keras.random.uniform(shape)) / 0.5


class Constant(keras.layers.Layer):
    """Keeps a tensor where nobody finds it."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3,), name="kernel")
        self.hidden = functools.partial(tf.identity, tf.random.normal([3]))

    def call(self, x):
        return x * self.kernel * self.hidden()
