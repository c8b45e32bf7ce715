import numpy as np
import pytest
import tensorflow as tf

from metriclearn.losses.reductions import REDUCTIONS, reduce_terms
from metriclearn.pairs import compare


def reduced(terms, reduction, rows=((1.0,), (2.0,))):
    rows = tf.constant(rows, tf.float32)
    return reduce_terms(tf.constant(terms, tf.float32), reduction, compare([0, 1], rows)).numpy()


def test_each_reduction():
    terms = [0.0, 3.0, 0.0, 6.0]
    assert [reduced(terms, r) for r in ("mean", "nonzero_mean", "sum")] == [2.25, 4.5, 9]
    assert reduced(terms, "none").tolist() == terms


@pytest.mark.parametrize("reduction", sorted(set(REDUCTIONS) - {"none"}))
def test_no_terms_are_zero_with_gradient_zero(reduction):
    rows = tf.ones([2, 1])
    with tf.GradientTape() as tape:
        tape.watch(rows)
        loss = reduce_terms(rows[:0, 0], reduction, compare([0, 1], rows))
    assert loss == 0
    np.testing.assert_array_equal(tf.convert_to_tensor(tape.gradient(loss, rows)), np.zeros((2, 1)))


@pytest.mark.parametrize("reduction", ["mean", "nonzero_mean"])
@pytest.mark.parametrize("size", [1e-37, 1e30, 3e38])
def test_a_mean_is_in_range_if_its_terms_are(size, reduction):
    terms = tf.constant([size] * 100, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(terms)
        mean = reduce_terms(terms, reduction, compare([0, 1], tf.ones([2, 1])))
    np.testing.assert_allclose(mean, np.float32(size), rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(mean, terms), np.full(100, 0.01), rtol=1e-5)


@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
def test_whatever_is_not_finite_in_the_batch_shows(reduction):
    for bad in np.nan, np.inf, -np.inf:
        assert not np.isfinite(reduced([1.0], reduction, ((1.0,), (bad,)))).any()
    assert np.isfinite(reduced([1.0], reduction, ((3e38,), (3e38,)))).all()
    references = ((1.0,), (np.nan,))
    comparison = compare([0, 1], tf.ones([2, 1]))._replace(references=tf.constant(references))
    assert np.isnan(reduce_terms(tf.ones([2]), reduction, comparison)).all()
