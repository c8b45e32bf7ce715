"""Values are tested in ../test_oracle.py."""

import numpy as np

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def test_a_restart_at_each_step_leaves_proxies_alone():
    """Then no walk reaches them: all exponents are the margin, and the loss counts the others."""
    proxies = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    still = metriclearn.manifold_loss(LABELS, X, proxies, restart=1.0, margin=0.5)
    np.testing.assert_allclose(still, 2 * np.log1p(2 * np.exp(0.5)), rtol=1e-5)
