import numpy as np
import pytest
import reference
import tensorflow as tf

import metriclearn
from metriclearn.distances import DISTANCES, normalize, power_of_two

pytestmark = pytest.mark.numeric
NAMES = sorted(DISTANCES)
EPSILON = float(np.finfo(np.float32).eps)
SCALES = [1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e20, 1e30]
# 'squared' and 'dot' of these rows are themselves in float32's range, others are for all scales.
SCALES_OF = {"squared": [1e-15, 1.0, 1e15], "dot": [1e-15, 1.0, 1e15]}
SCALED = [(name, scale) for name in NAMES for scale in SCALES_OF.get(name, SCALES)]


def scaled_rows(scale, seed=0, size=(11, 6)):
    return (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)


def product_error(name, x, y):
    """A bound on the rounding error of distances by one product of rows of D float32 elements.

    Each of the three terms of |x|^2 + |y|^2 - 2 x.y is a sum of D products, wrong by at most
    (D + 2) eps of the sum of their sizes, and the result is set to 0 below 8 eps.
    """
    norms = np.sum(x.astype(np.float64) ** 2, 1)[:, None] + np.sum(y.astype(np.float64) ** 2, 1)
    error = 2 * (x.shape[1] + 8) * EPSILON * norms
    if name == "cosine":
        return 2 * (x.shape[1] + 8) * EPSILON
    if name == "euclidean":  # |sqrt(s) - sqrt(s + e)| <= e / sqrt(s), and <= sqrt(e)
        return np.minimum(error / np.maximum(reference.distances(name, x, y), 1e-300), error**0.5)
    return error


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


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown distance 'euclidian' .did you mean 'euclidean'"):
        metriclearn.pairwise_distances([[1.0]], distance="euclidian")


@pytest.mark.parametrize("name, scale", SCALED)
def test_distances_are_right_over_the_range(name, scale):
    x, y = scaled_rows(scale, 1), scaled_rows(scale, 2)
    i, j = np.arange(11), np.arange(11)[::-1]
    wanted = reference.distances(name, x, y)
    got = metriclearn.pairwise_distances(x, y, distance=name)
    assert (np.abs(got - wanted) <= product_error(name, x, y)).all()
    got = DISTANCES[name].of_pairs(tf.constant(x), i, tf.constant(y), j)
    # Differences cancel nothing: an error of D roundings, for a dot product of its terms' sizes.
    size = wanted[i, j] if name in ("euclidean", "squared") else product_error(name, x, y)
    size = size if np.ndim(size) < 2 else size[i, j]
    relative = 10 * EPSILON if name in ("euclidean", "squared") else 1
    assert (np.abs(got - wanted[i, j]) <= relative * size).all()


@pytest.mark.parametrize("name, scale", SCALED)
def test_gradients_are_right_over_the_range(name, scale):
    """Against float64, where nothing overflows: the gradient of a sum of all distances."""
    i, j = np.repeat(np.arange(11), 11), np.tile(np.arange(11), 11)

    def gradients(x, y):
        x, y = tf.constant(x), tf.constant(y)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, y])
            full = metriclearn.pairwise_distances(x, y, distance=name)
            pairs = DISTANCES[name].of_pairs(x, i, y, j)
            alone = DISTANCES[name].of_pairs(x, i, x, j)
        return [
            np.asarray(tape.gradient(value, [x, y], unconnected_gradients="zero"))
            for value in (full, pairs, alone)
        ]

    x, y = scaled_rows(scale, 3), scaled_rows(scale, 4)
    x[3] = x[2]  # distance 0 among x
    exact = gradients(x.astype(np.float64), y.astype(np.float64))
    for got, wanted in zip(gradients(x, y), exact, strict=True):
        # 11 terms per row, each wrong by the few roundings of D = 6 products and a division.
        assert np.abs(got - wanted).max() <= 11 * 6 * 10 * EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
def test_rows_of_all_sizes_in_one_batch(name):
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(40, 3)) * 10.0 ** rng.uniform(-30, 30, (40, 1))).astype(np.float32)
    x[7] = 0
    wanted = reference.distances(name, x, x)
    got = metriclearn.pairwise_distances(x, distance=name)
    assert (np.abs(got - wanted) <= product_error(name, x, x)).all()
    i, j = np.repeat(np.arange(40), 40), np.tile(np.arange(40), 40)
    got = DISTANCES[name].of_pairs(tf.constant(x), i, tf.constant(x), j)
    np.testing.assert_allclose(
        got, wanted.ravel(), rtol=20 * EPSILON, atol=20 * EPSILON * (name == "cosine")
    )


def test_the_largest_and_smallest_numbers():
    x = np.array([[1e20], [3e20], [1e-20], [3e-20], [0]], np.float32)
    got = metriclearn.pairwise_distances(x).numpy()
    np.testing.assert_allclose(got, np.abs(x - x.T), rtol=2 * EPSILON)
    edge = tf.constant([[3e38, 0.0], [2e38, 0.0], [-3e38, 0.0], [1e-37, 3e-37]])
    got = metriclearn.pairwise_distances(edge)
    np.testing.assert_allclose(got[0], [0, 1e38, np.inf, 3e38], rtol=8 * EPSILON)
    with tf.GradientTape() as tape:
        tape.watch(edge)
        far = DISTANCES["euclidean"].of_pairs(edge, [0], edge, [1]) * 1e-6
    np.testing.assert_allclose(tape.gradient(far, edge)[:2, 0], [1e-6, -1e-6], rtol=4 * EPSILON)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_in_gives_not_a_number_out(name, bad):
    x = scaled_rows(1.0, 6, (5, 3))
    x[1, 2] = bad
    full = metriclearn.pairwise_distances(x, distance=name).numpy()
    pairs = DISTANCES[name].of_pairs(tf.constant(x), [1, 0, 0], tf.constant(x), [0, 1, 2]).numpy()
    assert not np.isfinite(full[1]).any() and not np.isfinite(full[:, 1]).any()
    assert np.isfinite(np.delete(np.delete(full, 1, 0), 1, 1)).all()
    assert not np.isfinite(pairs[:2]).any() and np.isfinite(pairs[2])
    if np.isnan(bad):
        assert np.isnan(full[1]).all() and np.isnan(pairs[:2]).all()


def test_rows_that_have_collapsed_are_told_apart():
    """|x|^2 + |y|^2 - 2 x.y of these alone is noise."""
    x = (1 + 1e-5 * np.random.default_rng(7).normal(size=(30, 16))).astype(np.float32)
    wanted = reference.distances("euclidean", x, x)
    got = metriclearn.pairwise_distances(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-9)


@pytest.mark.bfloat16
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = tf.constant([[300.0], [600.0]], dtype)  # squares are beyond float16
    got = metriclearn.pairwise_distances(x)
    assert got.dtype == dtype and got[0, 1] == 300


def test_normalized_rows_have_length_one():
    x = scaled_rows(1.0, 8) * np.float32(10.0) ** np.arange(-35, 31, 6, dtype=np.float32)[:, None]
    x[4] = 0
    lengths = np.linalg.norm(normalize(tf.constant(x)).numpy().astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, np.arange(11) != 4, rtol=8 * EPSILON)


def test_powers_of_two():
    x = tf.constant([0.0, 1e-45, 1.0, 1.5, 2.0, 3e38, np.inf])
    least = 2.0**-126
    assert power_of_two(x).numpy().tolist() == [least, least, 1, 1, 2, 2.0**126, 2.0**126]
    assert power_of_two(tf.constant([0.7, 1e300], tf.float64)).numpy().tolist() == [0.5, 2.0**996]
