"""Which examples are views, and where gradients stop. Values are tested in ../test_losses.py."""

import numpy as np
import pytest
import tensorflow as tf

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["barlow_twins", "simsiam", "vicreg"])
def test_views_are_the_first_two_of_each_class_wherever_they_are(name):
    loss = metriclearn.LOSSES[name]
    pairs = loss([0, 1, 2, 0, 1, 2], X[:6])
    mixed = [1, 0, 4, 2, 3, 5]
    labels = np.array([0, 1, 2, 0, 1, 2])[mixed]
    again = loss([*labels, 0, 7], np.concatenate([X[mixed], X[6:]]))
    np.testing.assert_allclose(again, pairs, rtol=1e-5)  # others are unused


def test_no_gradient_reaches_the_projections():
    predictions, projections = tf.constant(X[:6]), tf.constant(X[2:])
    with tf.GradientTape() as tape:
        tape.watch([predictions, projections])
        loss = metriclearn.simsiam_loss(np.arange(6) % 3, predictions, projections=projections)
    at_predictions, at_projections = tape.gradient(loss, [predictions, projections])
    assert np.abs(at_predictions).sum() > 0 and at_projections is None
    p, z = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (X[:6], X[2:]))
    wanted = [-(p[i] @ z[i + 3] + p[i + 3] @ z[i]) / 2 for i in range(3)]
    np.testing.assert_allclose(loss, np.mean(wanted), rtol=1e-5)


def test_a_constant_dimension_correlates_with_none():
    x = X[:6].copy()
    x[:, 0] = 0.5
    rest = metriclearn.barlow_twins_loss(np.arange(6) % 3, x[:, 1:])
    whole = metriclearn.barlow_twins_loss(np.arange(6) % 3, x)
    np.testing.assert_allclose(whole, 1 + rest, rtol=1e-5)


def test_projections_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="5 projections for 6 embeddings"):
        metriclearn.simsiam_loss(np.arange(6) % 3, X[:6], projections=X[:5])
