"""Compiled by XLA, a function gives what it gives otherwise, or raises with its name."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import metriclearn

LABELS = tf.constant(np.arange(6) % 3)
LABELS = tf.concat([LABELS, LABELS], 0)  # pairs, for given_positive
ROWS = tf.constant(np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32))
PROXIES = tf.constant(np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))
GIVEN = metriclearn.Triplets([0, 1, 5, 5], [3, 4, 2, 2], [1, 2, 3, 0])
EPSILON = np.finfo(np.float32).eps


def gradients(function):
    def run(labels, rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            value = function(labels, rows)
        return value, tf.convert_to_tensor(tape.gradient(value, rows))

    return run


LOSSES = metriclearn.LOSSES
OF_TRIPLETS = ("triplet", "margin", "dynamic_soft_margin")  # whose number depends on the data
COMPILED = (
    {name: gradients(LOSSES[name]) for name in sorted(set(LOSSES) - {*OF_TRIPLETS})}
    | {
        name: gradients(lambda y, x, loss=loss: loss(y, x, PROXIES))
        for name, loss in metriclearn.PROXY_LOSSES.items()
    }
    | {
        f"{name} of given triplets": gradients(
            lambda y, x, loss=LOSSES[name]: loss(y, x, miner=lambda *_: GIVEN)
        )
        for name in ("triplet", "margin")
    }
    | {
        f"{name} distances": gradients(
            lambda _, x, name=name: metriclearn.pairwise_distances(x, distance=name)
        )
        for name in metriclearn.DISTANCES
    }
    | {
        "triplet_statistics": lambda y, x: metriclearn.triplet_statistics(y, x, GIVEN),
        "hardest_triplet": lambda y, x: metriclearn.hardest_triplet(x, GIVEN),
        "embedding_statistics": lambda y, x: metriclearn.embedding_statistics(x),
    }
)
REFUSED = (
    {f"mine_{name}": miner for name, miner in metriclearn.MINERS.items()}
    | {
        f"triplet_loss/mine_{name}": lambda y, x, name=name: LOSSES["triplet"](y, x, miner=name)
        for name in sorted(set(metriclearn.MINERS) - {"batch_all"})
    }
    | {
        "triplet_loss/batch_all": lambda y, x: LOSSES["triplet"](y, x, miner="batch_all"),
        "margin_loss/mine_distance_weighted": LOSSES["margin"],
        "contrastive_loss/mine_hdc": lambda y, x: LOSSES["contrastive"](y, x, miner="hdc"),
        "dynamic_soft_margin_loss": LOSSES["dynamic_soft_margin"],
        "count_suspended": lambda y, x: metriclearn.count_suspended(y, x, 1.0),
        "circle_loss/float_labels_cannot_be_checked": lambda y, x: LOSSES["circle"](
            tf.cast(y, tf.float32), x
        ),
    }
)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_gives_the_same(name):
    wanted = COMPILED[name](LABELS, ROWS)
    got = tf.function(COMPILED[name], jit_compile=True)(LABELS, ROWS)
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(wanted), strict=True):
        # Sums of 12 x 4 terms in another order, amplified by at most the largest scale, 64.
        tolerance = 64 * 48 * EPSILON * max(1, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_raises_by_name(name):
    assert REFUSED[name](LABELS, ROWS) is not None
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"node {name}"):
        tf.function(REFUSED[name], jit_compile=True)(LABELS, ROWS)


def test_strings_cannot_be_compiled():
    """In a process of its own: TensorFlow does not survive a second one of these."""
    code = """
import tensorflow as tf, metriclearn
loss = tf.function(metriclearn.circle_loss, jit_compile=True)
try:
    loss(tf.constant(["a", "a", "b", "b"]), tf.eye(4))
except tf.errors.InvalidArgumentError as error:
    print("refused", "node labels" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "refused True\n", done.stderr


def test_a_memory_compiles_to_the_same():
    def losses(compiled):
        memory = metriclearn.cross_batch_memory(20, 4)

        @tf.function(jit_compile=compiled)
        def step(labels, rows):
            references = metriclearn.enqueue(memory, labels, rows)
            return metriclearn.contrastive_loss(labels, rows, references=references), references

        return [step(LABELS, ROWS * (1 + k)) for k in range(3)]  # 12, then 20 of 24 and 36

    for got, wanted in zip(losses(True), losses(False), strict=True):
        for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(wanted), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=48 * EPSILON, atol=48 * EPSILON)
