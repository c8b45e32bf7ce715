"""How rows are searched. What is mined is tested in ../test_miners.py."""

import numpy as np
import pytest

import metriclearn
from metriclearn.miners import nearest

pytestmark = pytest.mark.numeric


def triplets(mined):
    return [tuple(int(i) for i in t) for t in zip(*mined, strict=True)]


def batch(seed=0, size=14, classes=4, dimension=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, size), rng.normal(size=(size, dimension))


def test_semi_hard_sorts_where_passes_would_be_many(monkeypatch):
    labels, x = batch(4, size=30, classes=2)
    passes = triplets(metriclearn.mine_semi_hard(labels, x))
    monkeypatch.setattr(nearest, "PASSES", 1)
    assert triplets(metriclearn.mine_semi_hard(labels, x)) == passes
