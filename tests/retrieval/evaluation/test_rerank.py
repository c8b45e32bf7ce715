"""Re-ranking against plain definitions."""

import numpy as np
import pytest

from retrieval.catalogue import neighbours
from retrieval.embeddings import store
from retrieval.evaluation import figures, identity, rerank

pytestmark = pytest.mark.numeric


def test_expansion_is_the_weighted_sum(clustered):
    points = clustered[0].embeddings
    same = identity.Same(np.arange(3), np.arange(3), len(points))
    found = rerank.expand(points[:3], points, same, count=4, alpha=2.0)
    for q in range(3):
        scores = points @ points[q]
        scores[q] = 0  # the query itself adds nothing
        near = np.argsort(-(points @ points[q]))[:5]
        total = points[q] + sum(max(scores[j], 0) ** 2 * points[j] for j in near)
        np.testing.assert_allclose(found[q], total / np.linalg.norm(total), rtol=1e-4, atol=1e-6)


def test_expansion_takes_as_many_neighbours_of_queries_from_elsewhere(clustered):
    points = clustered[0].embeddings
    query = neighbours.prepare(points[:1] + 0.1, "cosine")
    near = np.argsort(-(points @ query[0]))[:4]
    total = query[0] + sum(max(points[j] @ query[0], 0) ** 2 * points[j] for j in near)
    for same in (None, identity.Same(np.arange(0), np.arange(0), len(points))):
        found = rerank.expand(query, points, same, count=4, alpha=2.0)
        np.testing.assert_allclose(found[0], total / np.linalg.norm(total), rtol=1e-4, atol=1e-6)


def test_what_lies_beyond_the_lists_is_not_lost():
    """k_reciprocal orders the first hundred; the right item comes after 200 others."""
    angles = np.concatenate([[0.0], np.linspace(0.1, 1, 200), [1.5]])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    names = np.array([f"{n:03d}" for n in range(202)])
    labels = np.where(np.isin(np.arange(202), [0, 201]), "a", names)
    items = store.Embedded(points, names, labels, names)
    result = figures.evaluate(items, ks=(1, 150, 201))
    found = rerank.compare(items, items, result, ["k_reciprocal"])["k_reciprocal"]
    assert found.recall[201] == result.figures.recall[201] == 1


def test_clustered_products_gain(clustered):
    items, result = clustered
    found = rerank.compare(items, items, result, rerank.METHODS)
    assert found["aqe"].map_at_r > result.figures.map_at_r
    assert found["dba"].map_at_r > result.figures.map_at_r
    assert 0.5 < found["k_reciprocal"].recall[1] <= 1
    for method in found.values():
        assert method.gain == pytest.approx(method.recall[1] - result.figures.recall[1])
