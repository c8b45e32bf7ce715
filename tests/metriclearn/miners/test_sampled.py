import numpy as np
import pytest
import reference
import tensorflow as tf

import metriclearn

pytestmark = pytest.mark.numeric


def triplets(mined):
    return [tuple(int(i) for i in t) for t in zip(*mined, strict=True)]


def batch(seed=0, size=14, classes=4, dimension=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, size), rng.normal(size=(size, dimension))


def test_distance_weighted_draws_by_wu_et_al():
    labels, x = batch(3, size=20, dimension=4)
    draws = tf.random.stateless_uniform([20, np.bincount(labels).max()], (5, 7), dtype=tf.float64)
    mined = triplets(metriclearn.mine_distance_weighted(labels, x, seed=(5, 7)))
    assert mined == reference.distance_weighted(labels, x, draws.numpy())
    # With a cutoff that nothing reaches, all negatives are equally likely.
    mined = metriclearn.mine_distance_weighted(labels, x, seed=(5, 7), nonzero_loss_cutoff=0.1)
    wanted = reference.distance_weighted(labels, x, draws.numpy(), nonzero_loss_cutoff=0.1)
    assert triplets(mined) == wanted


def test_distance_weighted_frequencies_follow_the_weights():
    angles = np.array([0, 0.01, 0.6, 0.9, 1.2])  # radians on the unit circle; D=2 still differs
    x = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1)
    labels = np.array([0, 0, 1, 2, 3])
    mine = tf.function(
        lambda step: metriclearn.mine_distance_weighted(labels, x, seed=[1, step]).negatives[0]
    )
    drawn = np.bincount([int(mine(tf.constant(i))) for i in range(3000)], minlength=5)[2:] / 3000
    d = 2 * np.sin(angles[2:] / 2)
    weights = 1 / (d**2 * np.sqrt(1 - d**2 / 4))
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.03)


def test_uniform_histogram_draws_each_step_as_often():
    labels, x = batch(6, size=40)
    mine = lambda seed: metriclearn.mine_uniform_histogram(  # noqa: E731
        labels, x, seed=seed, bins=8, positives_per_bin=5, negatives_per_bin=3
    )
    mined = mine((1, 2))
    d = reference.distances("euclidean", x, x)
    same = labels[:, None] == labels
    np.testing.assert_array_equal(labels[mined.positive_anchors], labels[mined.positives])
    assert not np.any(np.equal(mined.positive_anchors, mined.positives))
    kinds = (
        (d[same & ~np.eye(40, dtype=bool)], mined[:2], 5),
        (d[~same], mined[2:], 3),
    )
    for values, rows, count in kinds:
        edges = np.linspace(values.min(), values.max(), 9)
        edges[0], edges[-1] = 0, np.inf
        used = np.histogram(values, edges)[0] > 0
        np.testing.assert_array_equal(np.histogram(d[tuple(rows)], edges)[0], count * used)
    assert triplets(mined[:2]) == triplets(mine((1, 2))[:2]) != triplets(mine((1, 3))[:2])
