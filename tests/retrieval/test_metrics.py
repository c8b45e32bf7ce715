"""The metrics against plain loops, and against rankings worked out by hand."""

import math

import numpy as np
import pytest

from retrieval import metrics


def oracle_scores(queries, catalogue, similarity):
    """Scores in float64, [Q, N], one pair at a time."""
    scores = np.empty((len(queries), len(catalogue)))
    for i, a in enumerate(np.asarray(queries, np.float64)):
        for j, b in enumerate(np.asarray(catalogue, np.float64)):
            if similarity == "cosine":
                scores[i, j] = math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))
            elif similarity == "dot":
                scores[i, j] = math.fsum(a * b)
            else:
                scores[i, j] = -math.fsum((a - b) ** 2)
    return scores


def loop_metrics(scores, query_labels, catalogue_labels, query_ids, catalogue_ids, ks):
    """Definitions as one would say them aloud: scores [Q, N], ids None for no exclusion."""
    rows = []
    for i, label in enumerate(query_labels):
        items = []
        for j, item_label in enumerate(catalogue_labels):
            if query_ids is not None and query_ids[i] == catalogue_ids[j]:
                continue
            item_id = catalogue_ids[j] if catalogue_ids is not None else j
            items.append((-scores[i][j], item_id, item_label == label))
        items.sort()
        total = sum(relevant for _, _, relevant in items)
        if not total:
            rows.append(None)
            continue
        relevant = [r for _, _, r in items]
        first = relevant.index(True) + 1
        best = -items[first - 1][0]
        precision = [sum(relevant[: n + 1]) / (n + 1) for n in range(len(items))]
        rows.append(
            {
                "relevant": total,
                "first": first,
                "best": 1 + sum(-s > best for s, _, _ in items),
                "worst": 1 + sum(-s >= best and not r for s, _, r in items),
                "hits": [sum(relevant[:k]) for k in ks],
                "ap": sum(precision[n] for n in range(total) if relevant[n]) / total,
                "rp": sum(relevant[:total]) / total,
            }
        )
    return rows


def check(ranking, rows):
    for i, row in enumerate(rows):
        if row is None:
            assert ranking.relevant[i] == 0 and ranking.first[i] == 0
            assert math.isnan(ranking.average_precision[i])
            continue
        assert ranking.relevant[i] == row["relevant"]
        assert ranking.first[i] == row["first"]
        assert ranking.best[i] == row["best"]
        assert ranking.worst[i] == row["worst"]
        assert list(ranking.hits[i]) == row["hits"]
        assert ranking.average_precision[i] == pytest.approx(row["ap"], abs=1e-15)
        assert ranking.r_precision[i] == pytest.approx(row["rp"], abs=1e-15)


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_matches_loops_on_two_sets_that_overlap(similarity):
    random = np.random.default_rng(3)
    catalogue = random.normal(size=(37, 5)).astype(np.float32)
    queries = np.concatenate([catalogue[:6], random.normal(size=(11, 5)).astype(np.float32)])
    labels = random.integers(0, 9, 37)
    query_labels = np.concatenate([labels[:6], random.integers(0, 12, 11)])
    ids = np.array([f"item-{n}" for n in random.permutation(37)])
    query_ids = np.concatenate([ids[:6], [f"query-{n}" for n in range(11)]])
    ks = (1, 3, 50)
    ranking = metrics.rank_queries(
        queries, query_labels, catalogue, labels,
        query_ids=query_ids, catalogue_ids=ids, ks=ks, precision_at=ks, similarity=similarity,
    )  # fmt: skip
    scores = oracle_scores(queries, catalogue, similarity)
    rows = loop_metrics(scores, query_labels, labels, query_ids, ids, ks)
    assert None in rows, "some query should be unanswerable"
    check(ranking, rows)


@pytest.mark.parametrize("turns", [False, True])
def test_queries_against_themselves_with_ties(turns, monkeypatch):
    if turns:
        monkeypatch.setattr(metrics, "PAIRS", 50)
    random = np.random.default_rng(4)
    # Small integers: scores are exact, and many are equal.
    points = random.integers(-1, 2, (40, 3)).astype(np.float32)
    labels = random.integers(0, 8, 40)
    ids = random.permutation(40)
    ranking = metrics.rank_queries(
        points, labels, query_ids=ids, similarity="dot", precision_at=(1, 2, 5)
    )
    scores = points @ points.T
    check(ranking, loop_metrics(scores, labels, labels, ids, ids, (1, 2, 5)))
    assert (ranking.best < ranking.worst).any()


def test_by_hand():
    # Points on a line; the query at 0 sees b (1), a (2), b (3), a (5).
    ranking = metrics.rank_queries(
        [[0.0]], ["a"], [[1.0], [2.0], [-3.0], [5.0]], ["b", "a", "b", "a"],
        similarity="euclidean", ks=(1, 2, 4),
    )  # fmt: skip
    result = metrics.summarize(ranking)
    assert result["recall@k"] == {1: 0.0, 2: 1.0, 4: 1.0}
    assert result["map@r"] == pytest.approx(0.25)  # R = 2: (0 + 1/2) / 2
    assert result["r_precision"] == 0.5
    assert result["mrr"] == 0.5


def test_a_duplicate_of_the_query_under_another_id_is_not_the_query():
    points = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ranking = metrics.rank_queries(points, [7, 7, 8], ks=(1,))
    assert list(ranking.first) == [1, 1, 0]
    assert list(ranking.candidates) == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"catalogue": np.empty((0, 2)), "catalogue_labels": []}, "catalogue is empty"),
        ({"catalogue": np.ones((1, 3)), "catalogue_labels": [1]}, "2 dimensions"),
        ({"queries": [[1.0, np.nan]]}, "queries: row 0 is not finite"),
        ({"queries": [1.0, 2.0]}, r"\[rows, dimensions\]"),
        ({"query_labels": [1, 2]}, "one entry per row"),
        ({"catalogue_ids": ["x", "x"]}, "'x' occurs twice"),
        ({"similarity": "hamming"}, "not one of"),
        ({"filter": "int4"}, "filter='int4' is not one of auto, float32, bfloat16"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "queries": [[1.0, 2.0]],
        "query_labels": [1],
        "catalogue": [[1.0, 2.0], [2.0, 1.0]],
        "catalogue_labels": [1, 2],
    }
    with pytest.raises(ValueError, match=message):
        metrics.rank_queries(**(good | change))
