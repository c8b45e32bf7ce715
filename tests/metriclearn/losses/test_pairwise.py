"""What the pair losses do at the edges. Their values are tested in ../test_losses.py."""

import numpy as np
import pytest
import tensorflow as tf

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def test_the_two_kinds_of_contrastive_pairs_are_reduced_apart():
    d = metriclearn.pairwise_distances(X).numpy()
    same = (LABELS[:, None] == LABELS) & ~np.eye(8, dtype=bool)
    near, far = d[same], np.maximum(2 - d[LABELS[:, None] != LABELS], 0)
    for reduction, mean in ("mean", np.mean), ("nonzero_mean", lambda t: t[t > 0].mean()):
        got = metriclearn.contrastive_loss(LABELS, X, negative_margin=2.0, reduction=reduction)
        np.testing.assert_allclose(got, mean(near) + mean(far), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e18, 1e25, 1e37])
def test_n_pairs_of_long_rows_equals_a_float64_evaluation(scale):
    # Queries nearer to their positives than to others by far: the loss is in range, products not.
    rows = np.repeat(np.eye(3), 2, 0) + 0.01 * np.random.default_rng(1).normal(size=(6, 3))
    for sign in (1, -1):  # far nearer, or far farther, where the loss itself is out of range
        x, labels = (
            (rows * scale).astype(np.float32),
            [0, 0, 1, 1, 2, 2] if sign > 0 else [0, 1] * 3,
        )
        with tf.GradientTape() as tape:
            variable = tf.Variable(x)
            value = metriclearn.n_pairs_loss(labels, variable)
        wanted = metriclearn.n_pairs_loss(labels, x.astype(np.float64)).numpy()
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(value, wanted.astype(np.float32), rtol=1e-6)
        assert np.isfinite(tf.convert_to_tensor(tape.gradient(value, variable))).all()


def test_multi_similarity_mining_can_be_switched_off():
    mined = metriclearn.multi_similarity_loss(LABELS, X, beta=5.0)
    every = metriclearn.multi_similarity_loss(LABELS, X, beta=5.0, epsilon=None)
    wide = metriclearn.multi_similarity_loss(LABELS, X, beta=5.0, epsilon=9.0)
    np.testing.assert_allclose(every, wide, rtol=1e-6)
    assert mined < every


@pytest.mark.parametrize("beta", [1.2, np.float32(1.2), np.full(8, 1.2), np.full((8, 1), 1.2)])
def test_one_boundary_or_one_per_anchor(beta):
    wanted = metriclearn.margin_loss(LABELS, X, miner="batch_hard")
    np.testing.assert_allclose(
        metriclearn.margin_loss(LABELS, X, beta=beta, miner="batch_hard"), wanted
    )


@pytest.mark.parametrize(
    "beta, message", [(np.ones((8, 2)), "beta must be a vector"), (np.ones(7), "7 beta for 8")]
)
def test_other_boundaries_are_refused(beta, message):
    with pytest.raises(ValueError, match=message):
        metriclearn.margin_loss(LABELS, X, beta=beta, miner="batch_hard")
