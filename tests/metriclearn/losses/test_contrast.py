"""What these losses say of themselves. Their values are tested in ../test_oracle.py."""

import numpy as np
import pytest
import tensorflow as tf

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def test_nt_xent_is_n_pairs_on_cosines():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    wanted = metriclearn.n_pairs_loss(LABELS, unit / np.sqrt(0.5))
    np.testing.assert_allclose(metriclearn.nt_xent_loss(LABELS, X, temperature=0.5), wanted, 1e-5)


def test_a_tuplet_without_margin_is_nt_xent():
    wanted = metriclearn.nt_xent_loss(LABELS, X, temperature=1 / 8)
    got = metriclearn.tuplet_margin_loss(LABELS, X, margin=0.0, scale=8.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_weighted_sum_names_what_it_does_not_know():
    both = metriclearn.weighted_sum(("nca", 2.0), (metriclearn.nt_xent_loss, 1.0, {}))
    wanted = 2 * metriclearn.nca_loss(LABELS, X) + metriclearn.nt_xent_loss(LABELS, X)
    np.testing.assert_allclose(both(LABELS, X), wanted, rtol=1e-6)
    for terms, message in (
        ([], "at least one loss"),
        ([("ncaa", 1.0)], "mean 'nca'"),
        ([("nca", 1.0, {"scales": 1})], "loss 'nca' has no option 'scales' .* mean 'scale'"),
    ):
        with pytest.raises(ValueError, match=message):
            metriclearn.weighted_sum(*terms)


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
