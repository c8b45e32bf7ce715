"""The metrics against plain loops, and against rankings worked out by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from retrieval import metrics

pytestmark = pytest.mark.numeric


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
        ({"catalogue_labels": None}, "catalogue_labels are missing"),
        ({"catalogue": None}, "catalogue_labels and catalogue_ids need a catalogue"),
        ({"query_labels": [[1, 2]]}, r"query_labels must have one entry per row: \[1, 2\] for 1"),
        ({"catalogue_labels": [[1, 2]]}, "one entry per row"),
        ({"query_labels": [1.5]}, "query_labels: 1.5 is not a class"),
        ({"query_labels": [np.nan]}, "nan is not a class"),
        ({"query_labels": [np.inf]}, "inf is not a class"),
        (
            {"query_labels": [2.0**24 + 2]},
            "16777218.0 is not a class; floats must be whole numbers",
        ),
        ({"query_labels": [1j]}, "query_labels must be integers or strings, not complex128"),
        ({"query_labels": [None]}, "query_labels must be integers or strings"),
        ({"query_labels": ["1"]}, "labels: <U1 of the queries and int64 of the catalogue"),
        ({"query_labels": [b"\xff"], "catalogue_labels": ["a", "b"]}, "is not UTF-8"),
        ({"query_ids": [1], "catalogue_ids": ["a", "b"]}, "ids: int64 of the queries and <U1"),
        ({"query_ids": [[1, 2]]}, "query_ids must have one entry per row"),
        ({"ks": [0]}, "ks: k must be at least 1, not 0"),
        ({"precision_at": [-3]}, "precision_at: k must be at least 1, not -3"),
        ({"ks": [1.5]}, "ks takes whole numbers"),
        ({"ks": 5}, "ks takes whole numbers, not 5"),
        ({"excluded": [[0], [2]]}, "excluded must hold rows from 0 to 1"),
        ({"excluded": [[-1], [0]]}, "excluded must hold rows from 0 to 0"),
        ({"excluded": [[0, 0], [1]]}, "excluded holds 2 query rows for 1 catalogue rows"),
        ({"excluded": [0, 1, 2]}, "excluded must be"),
        ({"queries": [["a", "b"]]}, "queries must be real numbers of at most 64 bits"),
        ({"queries": [[1, 1j]]}, "queries must be real numbers of at most 64 bits"),
        ({"filter": "int4"}, "filter='int4' is not one of auto, float32, bfloat16, int8"),
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


def first_of(query_labels, catalogue_labels, **options):
    """Ranks of the first relevant of items in a row, for queries all at the start of it."""
    items = np.arange(1.0, len(catalogue_labels) + 1)[:, None]
    queries = np.zeros((len(query_labels), 1))
    return metrics.rank_queries(
        queries, query_labels, items, catalogue_labels, similarity="euclidean", **options
    ).first.tolist()


@pytest.mark.parametrize(
    ("queries", "catalogue", "expected"),
    [
        (np.array([2**60], np.int64), np.array([2**60 + 1, 2**60], np.uint64), [2]),
        (np.array([2**64 - 1], np.uint64), np.array([-1, 5], np.int64), [0]),
        (np.array([-1], np.int8), np.array([255, 2**63], np.uint64), [0]),
        ([2**70], [2**70 + 1, 2**70], [2]),
        (np.array([3.0, 2.0**24], np.float32), np.array([3, 2**24]), [1, 2]),
        (np.array([True]), np.array([0, 1]), [2]),
        (np.array([b"a"]), np.array(["b", "a"]), [2]),
        (np.array(["a", "é"], object), np.array(["é", "a"]), [2, 1]),
        ([[1], [2]], [[2], [1]], [2, 1]),
    ],
)
def test_labels_compare_exactly(queries, catalogue, expected):
    assert first_of(queries, catalogue) == expected


@pytest.mark.parametrize(
    "labels",
    [
        *([0.5], [np.nan], [np.inf], [-np.inf], [1e300], [2.0**24 + 1]),
        (np.array([2050], np.float16), np.array([2.0**24 + 2], np.float32)),
        ([2**63, 1],),
    ],
)
def test_floats_that_may_have_been_rounded_are_no_classes(labels):
    for values in labels if isinstance(labels, tuple) else (labels,):
        with pytest.raises(ValueError, match="is not a class; floats must be whole numbers up to"):
            first_of(values, values)


def test_ids_compare_exactly():
    ids = np.array([2**60], np.int64), np.array([2**60 + 1, 2**60], np.uint64)
    assert first_of([1], [1, 1], query_ids=ids[0], catalogue_ids=ids[1]) == [1]
    assert first_of([1], [2, 1], query_ids=ids[0], catalogue_ids=ids[1]) == [0]  # that is itself
    column = [each[:, None] for each in ids]
    assert first_of([1], [2, 1], query_ids=column[0], catalogue_ids=column[1]) == [0]


def test_excluded_pairs_take_the_place_of_ids():
    points, labels = np.array([[1.0], [2.0], [3.0], [4.0]]), [1, 1, 1, 2]
    ids = np.arange(4)
    options = {"similarity": "euclidean", "query_ids": ids}
    pairs = [0, 0, 0, 1], [0, 1, 1, 1]  # one of them twice
    ranking = metrics.rank_queries(points, labels, excluded=pairs, **options)
    assert ranking.candidates.tolist() == [2, 3, 4, 4]
    assert ranking.relevant.tolist() == [1, 2, 3, 1]
    assert ranking.first.tolist() == [1, 1, 1, 1]  # of the third query it is itself
    nothing = metrics.rank_queries(points, labels, excluded=([], []), **options)
    assert nothing.candidates.tolist() == [4] * 4


def test_cut_offs_beyond_the_catalogue_cost_nothing():
    points, labels = np.eye(4), [1, 1, 2, 2]
    ks = (1, 100_000_000, 2**70)
    tracemalloc.start()
    result = metrics.summarize(metrics.rank_queries(points, labels, ks=ks, precision_at=ks))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert result["recall@k"][2**70] == 1 and result["precision@k"][100_000_000] == 1e-8


def test_equal_pairs_by_hand():
    query, item = metrics.equal_pairs(np.array([*"abca"]), np.array([*"cxaa"]))
    assert list(zip(query.tolist(), item.tolist(), strict=True)) == [
        (0, 2), (0, 3), (2, 0), (3, 2), (3, 3),
    ]  # fmt: skip
