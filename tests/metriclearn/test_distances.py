import numpy as np
import pytest
import reference
import tensorflow as tf

import metriclearn
from metriclearn.distances import DISTANCES

NAMES = sorted(DISTANCES)


@pytest.mark.parametrize("name", NAMES)
def test_pairwise_matches_the_loop(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    x[2] = 0
    got = metriclearn.pairwise_distances(x, y, distance=name)
    np.testing.assert_allclose(got, reference.distances(name, x, y), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_finite_differences(name):
    rng = np.random.default_rng(1)
    x, y, weights = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=(4, 5))
    i, j = np.array([0, 3, 3, 1]), np.array([4, 0, 0, 2])
    x_t, y_t = tf.constant(x), tf.constant(y)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x_t, y_t])
        full = tf.reduce_sum(weights * metriclearn.pairwise_distances(x_t, y_t, distance=name))
        pairs = tf.reduce_sum(weights[0, :4] * DISTANCES[name].of_pairs(x_t, i, y_t, j))

    def loop_full(x, y):
        return np.sum(weights * reference.distances(name, x, y))

    def loop_pairs(x, y):
        return np.sum(weights[0, :4] * reference.distances(name, x, y)[i, j])

    for value, loop in (full, loop_full), (pairs, loop_pairs):
        np.testing.assert_allclose(value, loop(x, y), rtol=1e-12)
        at_x, at_y = tape.gradient(value, [x_t, y_t])
        wanted = reference.gradient(lambda v, loop=loop: loop(v, y), x)
        np.testing.assert_allclose(at_x, wanted, atol=1e-8)
        wanted = reference.gradient(lambda v, loop=loop: loop(x, v), y)
        np.testing.assert_allclose(at_y, wanted, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_nearness_orders_rows_as_the_distance_does(name):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(9, 3))
    x_t, y_t = tf.constant(x), tf.constant(y)
    nearness = DISTANCES[name].nearness(x_t, y_t, tf.float64).scores(x_t)
    np.testing.assert_array_equal(
        np.argsort(-np.asarray(nearness), axis=1),
        np.argsort(reference.distances(name, x, y), axis=1),
    )


@pytest.mark.parametrize("name", ["euclidean", "squared", "cosine"])
def test_gradient_at_distance_zero_is_finite(name):
    x = tf.constant([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        full = metriclearn.pairwise_distances(x, distance=name)[0, 1]
        pair = DISTANCES[name].of_pairs(x, [0, 2], x, [1, 2])
    for value in full, pair:
        assert np.isfinite(tape.gradient(value, x)).all()
    np.testing.assert_array_equal(tape.gradient(full, x)[:2], np.zeros((2, 2)))


def test_rounding_is_not_mistaken_for_distance():
    x = 10 + np.random.default_rng(3).normal(size=(50, 64)).astype(np.float32)
    distances = metriclearn.pairwise_distances(np.concatenate([x, x]))
    np.testing.assert_array_equal(np.diagonal(distances, 50), np.zeros(50))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown distance 'euclidian' .did you mean 'euclidean'"):
        metriclearn.pairwise_distances([[1.0]], distance="euclidian")
