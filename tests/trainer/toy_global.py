"""The toy model with a loss over the global batch: each example against every other."""

import tensorflow as tf
import toy
from toy import config, datasets

__all__ = ["build", "config", "datasets", "loss"]


def build(inputs=None, train_phase=False):
    outputs = toy.build(inputs, train_phase)
    del outputs.loss
    return outputs


def loss(outputs):
    error = outputs.prediction - outputs.target
    pairs = tf.abs(error[:, None] - error[None])
    return {
        "loss": tf.reduce_mean(pairs) + tf.reduce_mean(tf.square(error)),
        "pairs": tf.reduce_mean(pairs),
    }
