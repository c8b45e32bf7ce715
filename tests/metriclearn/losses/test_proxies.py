"""What the proxy losses do at the edges. Their values are tested in ../test_losses.py."""

import numpy as np
import pytest
import tensorflow as tf

from metriclearn import PROXY_LOSSES

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
PROXIES = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(PROXY_LOSSES))
def test_a_label_without_a_proxy_is_refused_or_shows(name):
    batches = [np.array([0, 1, 2, 3, 0, label]) for label in (-1, 4, 2**40)]
    for labels in batches:
        with pytest.raises(ValueError, match="labels must be rows of the 4 proxies"):
            PROXY_LOSSES[name](labels, X, PROXIES)

    def loss(labels):
        return PROXY_LOSSES[name](labels, X, PROXIES)

    signature = [tf.TensorSpec([None], tf.int64)]
    for compiled in False, True:
        later = tf.function(loss, input_signature=signature, jit_compile=compiled)
        assert np.isfinite(later(np.arange(6) % 4))
        assert all(np.isnan(later(labels)) for labels in batches)


def test_terms_belong_to_examples():
    """In all but these two, where they also depend on the rest of the batch."""
    labels = np.array([0, 1, 2, 3, 0, 1])
    for name in sorted(set(PROXY_LOSSES) - {"proxy_anchor", "manifold"}):
        terms = PROXY_LOSSES[name](labels, X, PROXIES, reduction="none").numpy()
        assert terms.shape == (6,)
        np.testing.assert_allclose(PROXY_LOSSES[name](labels, X, PROXIES), terms.mean(), rtol=1e-6)
        alone = PROXY_LOSSES[name](labels[2:3], X[2:3], PROXIES)
        np.testing.assert_allclose(alone, terms[2], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PROXY_LOSSES))
def test_a_broken_proxy_shows(name):
    proxies = PROXIES.copy()
    proxies[3, 0] = np.nan
    assert np.isnan(PROXY_LOSSES[name]([0, 1, 2], X[:3], proxies))
    with pytest.raises(ValueError, match="proxies must be a matrix"):
        PROXY_LOSSES[name]([0, 1, 2], X[:3], PROXIES[0])
