"""Compiled by XLA, a function gives what it gives otherwise, or raises with its name."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import metriclearn

LABELS = tf.constant(np.arange(6) % 3)
LABELS = tf.concat([LABELS, LABELS], 0)  # pairs, for given_positive
ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
ROWS[9], ROWS[5] = ROWS[3], ROWS[0]  # equal rows, of one class and of two, tie
ROWS = tf.constant(ROWS)
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
MINED = ("batch_hard", "easy_positive", "given_positive", "semi_hard", "top_k_hard")
FALLBACK = functools.partial(
    metriclearn.mine_semi_hard, margin=None, fallback="farthest", false_negative_guard=0.1
)
COMPILED = (
    {name: gradients(LOSSES[name]) for name in sorted(set(LOSSES) - {"margin"})}
    | {
        name: gradients(lambda y, x, loss=loss: loss(y, x, PROXIES))
        for name, loss in metriclearn.PROXY_LOSSES.items()
    }
    | {
        f"triplet of {'semi_hard with options' if miner is FALLBACK else miner}": gradients(
            lambda y, x, miner=miner: LOSSES["triplet"](y, x, miner=miner, margin=1.0)
        )
        for miner in (*MINED[1:], "batch_all", FALLBACK)
    }
    | {
        "contrastive of batch_hard": gradients(
            functools.partial(LOSSES["contrastive"], miner=MINED[0])
        )
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
        "count_suspended": lambda y, x: metriclearn.count_suspended(y, x, 1.0),
        "triplet_statistics": lambda y, x: metriclearn.triplet_statistics(y, x, GIVEN),
        "hardest_triplet": lambda y, x: metriclearn.hardest_triplet(x, GIVEN),
        "embedding_statistics": lambda y, x: metriclearn.embedding_statistics(x),
    }
)
BY_DATA = sorted(set(metriclearn.MINERS) - {*MINED, "distance_weighted"})
REFUSED = {f"mine_{name}": metriclearn.MINERS[name] for name in BY_DATA} | {
    "triplet_loss/mine_hdc": lambda y, x: LOSSES["triplet"](y, x, miner="hdc"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_gives_the_same(name):
    wanted = COMPILED[name](LABELS, ROWS)
    got = tf.function(COMPILED[name], jit_compile=True)(LABELS, ROWS)
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(wanted), strict=True):
        # Sums of 12 x 4 terms in another order, amplified by at most the largest scale, 64.
        tolerance = 64 * 48 * EPSILON * max(1, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused_in_one_line(name):
    assert REFUSED[name](LABELS, ROWS) is not None
    with pytest.raises(ValueError, match=rf"^{name}: XLA cannot .*jit_compile=False\)$"):
        # As Keras traces its step: AutoGraph would add where the line is.
        tf.function(REFUSED[name], jit_compile=True, autograph=False)(LABELS, ROWS)


def test_a_graph_that_was_built_before_it_is_compiled_raises_by_name():
    inner = tf.function(metriclearn.mine_hdc)
    inner(LABELS, ROWS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="node mine_hdc"):
        tf.function(lambda y, x: inner(y, x), jit_compile=True)(LABELS, ROWS)


def test_padding_is_marked_and_rows_that_are_drawn_are_legal():
    """Compiled, T is B x M: the pairs, and -1 elsewhere. The draws themselves are other ones."""
    drawn = tf.function(metriclearn.mine_distance_weighted, jit_compile=True)(LABELS, ROWS)
    assert [len(rows) for rows in drawn] == [144] * 3
    anchors, positives, negatives = (rows.numpy()[drawn.anchors.numpy() >= 0] for rows in drawn)
    wanted = metriclearn.mine_distance_weighted(LABELS, ROWS)
    np.testing.assert_array_equal(anchors, wanted.anchors)
    np.testing.assert_array_equal(positives, wanted.positives)
    labels = LABELS.numpy()
    assert (labels[anchors] != labels[negatives]).all()

    def margin(labels, rows):
        return metriclearn.margin_loss(labels, rows, miner=lambda *_: drawn)

    given = metriclearn.Triplets(anchors, positives, negatives)
    expected = metriclearn.margin_loss(LABELS, ROWS, miner=lambda *_: given)
    got = tf.function(margin, jit_compile=True)(LABELS, ROWS)
    np.testing.assert_allclose(got, expected, rtol=len(anchors) * EPSILON)


def test_in_keras_batches_of_unknown_size_and_float_labels_compile():
    """As a model gets them on a GPU: the size is unknown when the step is traced."""
    signature = [tf.TensorSpec([None, 1], tf.float32), tf.TensorSpec([None, 4], tf.float32)]
    loss = gradients(LOSSES["triplet"])
    compiled = tf.function(loss, jit_compile=True, input_signature=signature)
    labels = tf.cast(LABELS, tf.float32)[:, None]
    for one, other in zip(compiled(labels, ROWS), loss(LABELS, ROWS), strict=True):
        np.testing.assert_allclose(one, other, rtol=48 * EPSILON, atol=48 * EPSILON)
    assert np.isnan(compiled(labels + 0.5, ROWS)[0])  # XLA cannot raise


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
