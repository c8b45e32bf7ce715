"""Relevant pairs, and equal rows that are multiplied once."""

import numpy as np
import pytest

from retrieval.ranking import relevant, vectors


def test_relevant_pairs_by_hand():
    labels, items = np.array([1, 2, 3]), np.array([2, 1, 2, 1])
    none = (np.zeros(0, int),) * 2
    query, item = relevant.relevant_pairs(labels, items, none)
    assert (query.tolist(), item.tolist()) == ([0, 0, 1, 1], [1, 3, 0, 2])
    out = np.array([0, 1, 2]), np.array([3, 1, 0])  # of the last two nothing is relevant
    query, item = relevant.relevant_pairs(labels, items, out)
    assert (query.tolist(), item.tolist()) == ([0, 1, 1], [1, 0, 2])


@pytest.mark.parametrize("groups", [1, 10])
def test_equal_rows_are_one_column(groups):
    """As a collapsed embedding has them: its evaluation takes no longer."""
    random = np.random.default_rng(0)
    points = random.normal(size=(groups, 8)).astype(np.float32)
    of = random.integers(0, groups, 500)
    side, _ = vectors.pair(points[of], points[of], "cosine")
    found = relevant.columns_of(side, side, np.arange(500))
    assert len(found.vectors) == groups
    np.testing.assert_array_equal(found.size, np.bincount(found.of))
    for items in (np.flatnonzero(found.of == column) for column in range(groups)):
        assert len(set(of[items])) == 1
    other = random.normal(size=(500, 8)).astype(np.float32)
    side, _ = vectors.pair(other, other, "cosine")
    assert len(relevant.columns_of(side, side, np.arange(500)).vectors) == 500
