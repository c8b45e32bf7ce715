"""Re-ranking and the approximate index, against plain definitions."""

import numpy as np
import pytest

from retrieval import metrics
from retrieval.catalogue import neighbours
from retrieval.embeddings import store
from retrieval.evaluation import figures, identity, index_loss, intervals, rerank
from retrieval.ranking import vectors


@pytest.fixture(scope="module")
def sets():
    random = np.random.default_rng(8)
    labels = np.repeat(np.arange(40), 6)
    points = random.normal(size=(40, 12))[labels] + 0.9 * random.normal(size=(240, 12))
    points = neighbours.prepare(points, "cosine")
    names = np.array([f"i{n}" for n in range(240)])
    items = store.Embedded(points, names, labels.astype(str), np.full(240, ""))
    return items, figures.evaluate(items)


def test_expansion_is_the_weighted_sum(sets):
    points = sets[0].embeddings
    found = rerank.expand(
        points[:3],
        points,
        identity.Same(np.arange(3), np.arange(3), len(points)),
        count=4,
        alpha=2.0,
    )
    for q in range(3):
        scores = points @ points[q]
        scores[q] = 0  # the query itself adds nothing
        near = np.argsort(-(points @ points[q]))[:5]
        total = points[q] + sum(max(scores[j], 0) ** 2 * points[j] for j in near)
        np.testing.assert_allclose(found[q], total / np.linalg.norm(total), rtol=1e-4, atol=1e-6)


def test_expansion_takes_as_many_neighbours_of_queries_from_elsewhere(sets):
    points = sets[0].embeddings
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
    assert found["recall@k"][201] == result.figures["recall@k"][201] == 1


def test_agreement_counts_no_query_as_its_own_neighbour(sets):
    """An index that finds nothing but the query itself has found nothing."""
    items, result = sets
    only = np.full((240, 21), -1)
    only[:, 0] = np.arange(240)

    def opened(kind, *_):
        about = {"factory": kind}
        return lambda q, k: only[: len(q), :k], about

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_loss, "_made", opened)
        assert index_loss.losses(items, items, result, "none")["agreement"] == 0
    assert index_loss.losses(items, items, result, "Flat")["agreement"] == 1


def test_clustered_products_gain(sets):
    items, result = sets
    found = rerank.compare(items, items, result, rerank.METHODS)
    assert found["aqe"]["map@r"] > result.figures["map@r"]
    assert found["dba"]["map@r"] > result.figures["map@r"]
    assert 0.5 < found["k_reciprocal"]["recall@k"][1] <= 1
    for method in found.values():
        assert method["gain"] == pytest.approx(
            method["recall@k"][1] - result.figures["recall@k"][1]
        )


def test_the_index_loses_what_is_reported(sets):
    items, result = sets
    exact = index_loss.losses(items, items, result, "Flat")
    assert all(lost == 0 for lost in exact["lost"].values())
    coarse = index_loss.losses(items, items, result, "PQ2x4")
    assert coarse["lost"][1] > 0.05
    assert coarse["bytes_per_vector"] < exact["bytes_per_vector"]


def test_ties_expected_recall_by_enumeration():
    # One query; one relevant of four equal items, one item before them.
    catalogue = np.array([[2.0], [1.0], [1.0], [1.0], [1.0]])
    ranking = metrics.rank_queries(
        [[1.0]], ["a"], catalogue, ["b", "b", "a", "b", "b"], similarity="dot", ks=(1, 2, 3, 5)
    )
    ties = figures.ties(ranking)
    assert ties["best"] == {1: 0, 2: 1, 3: 1, 5: 1}
    assert ties["worst"] == {1: 0, 2: 0, 3: 0, 5: 1}
    assert ties["expected"] == pytest.approx({1: 0, 2: 0.25, 3: 0.5, 5: 1})


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
    monkeypatch.setattr(vectors, "CHUNK", 64)
    random = np.random.default_rng(4)
    points = (1 + scale * random.normal(size=(90, 4))).astype(np.float32)
    points[60:75] = points[30:45]  # ties between products
    labels, names = random.integers(0, 12, 90).astype(str), np.array([f"i{n}" for n in range(90)])
    items = store.Embedded(points, names, labels, np.full(90, ""))
    queries = store.Embedded(points[:40], names[:40], labels[:40], np.full(40, ""))
    found = figures.shelf_ranks(queries, items, "dot")
    wide = points.astype(np.float64)
    for q in range(40):
        score = np.array([p.astype(float) @ points[q].astype(float) for p in points])
        np.testing.assert_allclose(score, wide @ wide[q], rtol=1e-12)
        score[q] = -np.inf
        best = {label: score[labels == label].max() for label in set(labels)}
        before = sum(value > best[labels[q]] for value in best.values())
        assert found[q] == (before + 1 if np.isfinite(best[labels[q]]) else 0)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_nearest_by_blocks(similarity, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    random = np.random.default_rng(6)
    points = random.normal(size=(50, 5)).astype(np.float32)
    scores, rows = neighbours.nearest(points[:9], [points[:20], points[20:]], 12, similarity)
    for q in range(9):
        if similarity == "cosine":
            unit = points / np.linalg.norm(points, axis=1, keepdims=True)
            expected = unit @ unit[q]
        else:
            expected = -np.linalg.norm(points - points[q], axis=1)
        order = np.argsort(-expected, kind="stable")[:12]
        assert rows[q].tolist() == order.tolist()
        np.testing.assert_allclose(scores[q], expected[order], atol=1e-3)


def test_intervals_are_wider_when_products_are_few():
    random = np.random.default_rng(1)
    values = (random.random((400, 1)) < 0.5).astype(float)
    values = np.repeat(values[:20], 20, 0)  # a product's queries stand or fall together
    clustered = intervals.bootstrap(values, np.repeat(np.arange(20), 20))
    alone = intervals.bootstrap(values, np.arange(400))
    assert clustered.std() > 3 * alone.std()
    expected = values[::20].std() / np.sqrt(20)
    assert clustered.std() == pytest.approx(expected, rel=0.1)
