"""What ranking losses do at the edges. Their values are tested in ../test_losses.py."""

import numpy as np
import pytest

import metriclearn

LABELS = np.repeat(np.arange(4), 3)
CLUSTERS = np.eye(4, dtype=np.float32)[LABELS] + 0.01 * np.random.default_rng(0).normal(
    size=(12, 4)
)
SHARP = {
    "smooth_ap": {"temperature": 1e-3},
    "recall_at_k": {"temperature": 1e-3, "rank_temperature": 1e-2, "ks": (3,)},
    "fast_ap": {"bins": 20},
}


@pytest.mark.parametrize("name", SHARP)
def test_a_perfect_ranking_costs_nothing_and_a_reversed_one_all(name):
    loss = metriclearn.LOSSES[name]
    assert abs(loss(LABELS, CLUSTERS, **SHARP[name])) < 1e-3
    apart = np.arange(12) % 4  # no cluster holds two of a label
    assert loss(apart, CLUSTERS, **SHARP[name]) > 0.6


@pytest.mark.parametrize("name", SHARP)
def test_only_the_order_of_similarities_counts(name):
    loss = metriclearn.LOSSES[name]
    wanted = loss(LABELS, CLUSTERS, **SHARP[name])
    scaled = CLUSTERS * np.arange(1, 13)[:, None]  # cosines do not change
    np.testing.assert_allclose(loss(LABELS, scaled, **SHARP[name]), wanted, atol=1e-6)
