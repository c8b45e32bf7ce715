"""What the pair losses do at the edges. Their values are tested in ../test_losses.py."""

import numpy as np
import pytest

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


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
