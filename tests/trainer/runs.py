"""Comparisons of finished runs, for tests."""

import numpy as np
import tensorflow as tf

from trainer import checkpoints, meters


def weights(folder, step=None):
    """Every variable of a checkpoint, slots and step included."""
    prefix = checkpoints.latest(f"{folder}/checkpoint")
    if step is not None:
        prefix = f"{folder}/checkpoint/model-{step}"
    with checkpoints.literal(prefix) as path:
        reader = tf.train.load_checkpoint(path)
        return {name: reader.get_tensor(name) for name in checkpoints.shapes(prefix)}


def assert_equal_weights(a, b):
    """Bit for bit the same weights and slots."""
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def assert_equal_runs(a, b):
    """Bit for bit the same weights, slots and metrics."""
    assert_equal_weights(a, b)
    assert meters.read_metrics(a) == meters.read_metrics(b)
