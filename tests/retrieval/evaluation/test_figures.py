"""Figures of an embedding, against plain definitions."""

import numpy as np
import pytest

from retrieval import metrics
from retrieval.embeddings import store
from retrieval.evaluation import figures
from retrieval.evaluation.figures import evaluate
from retrieval.ranking import vectors

pytestmark = pytest.mark.numeric


def test_ties_expected_recall_by_enumeration():
    # One query; one relevant of four equal items, one item before them.
    catalogue = np.array([[2.0], [1.0], [1.0], [1.0], [1.0]])
    ranking = metrics.rank_queries(
        [[1.0]], ["a"], catalogue, ["b", "b", "a", "b", "b"], similarity="dot", ks=(1, 2, 3, 5)
    )
    ties = figures.ties(ranking)
    assert ties.best == {1: 0, 2: 1, 3: 1, 5: 1}
    assert ties.worst == {1: 0, 2: 0, 3: 0, 5: 1}
    assert ties.expected == pytest.approx({1: 0, 2: 0.25, 3: 0.5, 5: 1})


def test_the_shelf_counts_products_not_pictures():
    points = np.array([[1.0], [3.0], [2.5], [2.0]])
    queries = store.Embedded(points[:1], np.array(["q"]), np.array(["a"]), np.array([""]))
    catalogue = store.Embedded(
        points[1:], np.array(["1", "2", "3"]), np.array(["b", "b", "a"]), np.full(3, "")
    )
    assert figures.shelf_ranks(queries, catalogue, "dot").tolist() == [2]
    assert metrics.rank_queries(
        queries.embeddings, queries.products, catalogue.embeddings, catalogue.products,
        similarity="dot",
    ).first.tolist() == [3]  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_shelf_is_exact_where_float32_is_not(scale, monkeypatch):
    """Points a hair apart, overlapping sets, several blocks: against float64, one pair a time."""
    monkeypatch.setattr(vectors, "BLOCK", 256)
    random = np.random.default_rng(4)
    points = (1 + scale * random.normal(size=(90, 4))).astype(np.float32)
    points[60:75] = points[30:45]  # ties between products
    labels, names = random.integers(0, 12, 90).astype(str), np.array([f"i{n}" for n in range(90)])
    items = store.Embedded(points, names, labels, np.full(90, ""))
    queries = store.Embedded(points[:40], names[:40], labels[:40], np.full(40, ""))
    found = figures.shelf_ranks(queries, items, "dot")
    wide = points.astype(np.float64)
    for q in range(40):
        # Exact: products of float32 numbers have 48 bits, and longdouble sums them with 64.
        score = (wide.astype(np.longdouble) * wide[q]).sum(1)
        score[q] = -np.inf
        best = {label: score[labels == label].max() for label in set(labels)}
        before = sum(value > best[labels[q]] for value in best.values())
        assert found[q] == (before + 1 if np.isfinite(best[labels[q]]) else 0)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_scores_beyond_float32_are_named(similarity):
    names = np.array([*"1234"])
    points = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * np.float32(1e25)
    items = store.Embedded(points, names, np.array([*"ppqq"]), names)
    with pytest.raises(ValueError, match=f"{similarity} are beyond float32: divide all embeddings"):
        evaluate(items, similarity=similarity)
    assert np.isfinite(evaluate(items).scores[:, :3]).all()
