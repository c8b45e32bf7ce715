"""The metrics against plain loops, and against rankings worked out by hand."""

import math
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import metrics
from retrieval.embeddings import store
from retrieval.evaluation import figures, lists
from retrieval.ranking import counting, kernels, vectors


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
        ({"query_labels": [1, 2]}, "one entry a row"),
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


def brute(points, labels, catalogue, catalogue_labels, own, ks):
    """First rank, MAP@R and hits from the full float64 matrix; ids are row numbers."""
    scores = (lambda a, b: np.einsum("ij,ij->i", a.astype(float), b.astype(float)))(
        np.repeat(points, len(catalogue), 0), np.tile(catalogue, (len(points), 1))
    ).reshape(len(points), -1)
    first, ap, hits = [], [], []
    for i, row in enumerate(scores):
        row = np.where(np.arange(len(row)) == own[i], -np.inf, row)
        found = (catalogue_labels == labels[i])[np.lexsort((np.arange(len(row)), -row))]
        if own[i] >= 0:
            found = found[:-1]
        total = int(found.sum())
        first.append(int(found.argmax()) + 1 if total else 0)
        precision = np.cumsum(found) / np.arange(1, len(found) + 1)
        ap.append((precision * found)[:total].sum() / total if total else np.nan)
        hits.append([int(found[:k].sum()) for k in ks])
    return np.array(first), np.array(ap), np.array(hits)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 90),
    dimensions=st.sampled_from([1, 3, 17]),
    products=st.integers(1, 30),
    copies=st.booleans(),
    own_set=st.booleans(),
    scale=st.sampled_from([1.0, 1e-20, 1e25]),
    filter=st.sampled_from(["float32", "bfloat16"]),
)
def test_counting_equals_sorting(seed, rows, dimensions, products, copies, own_set, scale, filter):
    """Blocks of a few rows, so that every edge of the blocking is met; copies make exact ties."""
    random = np.random.default_rng(seed)
    points = (random.normal(size=(rows, dimensions)) * scale).astype(np.float32)
    if copies:
        points = points[random.integers(0, max(1, rows // 3), rows)]
    labels = random.integers(0, products, rows)
    half = rows if own_set else rows // 2
    small = {"SUPER": 32, "TILE": 8, "DEEP": int(random.integers(9))}
    small["PENDING"] = int(random.integers(99))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(counting, name, value)
        arguments = (points, labels) if own_set else (points[:half], labels[:half], points, labels)
        ids = np.arange(rows)
        ranking = metrics.rank_queries(
            *arguments, similarity="dot", precision_at=(1, 4), filter=filter,
            query_ids=ids[:half], catalogue_ids=None if own_set else ids,
        )  # fmt: skip
    first, ap, hits = brute(points[:half], labels[:half], points, labels, ids, (1, 4))
    np.testing.assert_array_equal(ranking.first, first)
    np.testing.assert_array_equal(ranking.hits, hits)
    np.testing.assert_allclose(ranking.average_precision, ap, rtol=1e-12)


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_filters_agree_over_several_tiles(similarity):
    """Real tiles, with a last one that is not full; scores crowd, so that bfloat16 tells few."""
    random = np.random.default_rng(9)
    labels = random.integers(0, 300, 1300)
    points = (1 + 0.02 * random.normal(size=(1300, 70))).astype(np.float32)
    points += (0.03 * random.normal(size=(300, 70)))[labels].astype(np.float32)
    found = [
        metrics.rank_queries(points, labels, similarity=similarity, filter=name, threads=2)
        for name in ("float32", "bfloat16")
    ]
    assert [ranking.filter for ranking in found] == ["float32", "bfloat16"]
    for name in ("first", "best", "worst", "hits", "average_precision", "tied"):
        np.testing.assert_array_equal(*(getattr(ranking, name) for ranking in found))


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_the_bound_of_bfloat16_holds(similarity):
    random = np.random.default_rng(10)
    points = random.normal(size=(70, 33)) * 10.0 ** random.integers(-3, 3, (70, 1))
    left = vectors.Vectors(points.astype(np.float32), similarity)
    product = kernels.Bfloat16(left, left, 1)
    rows, items = left.left(slice(None)), left.right(slice(None))
    scores = product.multiply(product.left(rows), product.right(items), types.SimpleNamespace())
    scores = scores.transpose(1, 0, 2).reshape(70, -1)[:, :70]
    error = np.abs(scores - rows.astype(np.float64) @ items.T.astype(np.float64))
    assert (error <= product.bound[:, None]).all()
    # It is no looser than Cauchy-Schwarz makes it: some error comes within a fiftieth.
    assert (error > product.bound[:, None] / 50).any()


def test_items_a_hair_apart_are_told_apart():
    # Steps of one float32 ulp near 1: no float32 product can order them.
    ulp = np.float32(2.0**-23)
    catalogue = np.array([[1, n * ulp] for n in range(200)], np.float32)
    queries = np.array([[1, 1e-6]], np.float32)
    labels = np.zeros(200, int)
    labels[57] = 1
    ranking = metrics.rank_queries(queries, [1], catalogue, labels, similarity="dot")
    assert ranking.first[0] == 200 - 57
    assert ranking.decided[0]


@pytest.mark.parametrize("own_set", [False, True])
@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_lists_are_in_the_order_of_the_ranks(similarity, own_set):
    """Also where items tie: what is listed first is what the figures count as first."""
    random = np.random.default_rng(4)
    points = random.normal(size=(60, 8)).astype(np.float32)
    names = np.array([f"c{n:03d}" for n in random.permutation(300)])
    labels = random.integers(0, 20, 300).astype(str)
    items = store.Embedded(points[random.integers(0, 60, 300)], names, labels, names)
    queries = store.Embedded(points[:50], names[:50] + "q", labels[-50:], names[:50])
    queries = items if own_set else queries
    result = figures.evaluate(queries, None if own_set else items, similarity=similarity)
    right = (labels[result.rows] == queries.products[:, None]) & (result.rows >= 0)
    listed = np.where(right.any(1), right.argmax(1) + 1, 0)
    first = result.ranking.first
    np.testing.assert_array_equal(listed, np.where(first <= 20, first, 0))


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_lists_of_items_a_hair_apart_are_ordered_exactly(similarity):
    """Only near neighbours are scored once more: the order is that of scoring all of them."""
    random = np.random.default_rng(8)
    base, names = random.normal(size=(1, 30)), np.array([f"i{n:03d}" for n in range(400)])
    apart = 10.0 ** -random.uniform(5, 7, (400, 1))
    points = (base + apart * random.normal(size=(400, 30))).astype(np.float32)
    asking = (base + random.normal(size=(50, 30))).astype(np.float32)
    items, queries = (store.Embedded(e, names[: len(e)], names, names) for e in (points, asking))
    scores, rows = lists.nearest(asking, points, 41, similarity)
    found = lists.in_order(scores, rows, queries, items, similarity, 21)[1][:, :21]
    left, right = vectors.pair(asking, points, similarity)
    query = np.repeat(np.arange(50), 41)
    exact = vectors.pair_scores(left.left(query), right.right(rows.ravel())).reshape(rows.shape)
    order = np.lexsort((rows, -exact))[:, :21]  # ids are in the order of rows
    np.testing.assert_array_equal(found, np.take_along_axis(rows, order, 1))
    assert (found != rows[:, :21]).any()


def test_lists_of_rows_nearly_of_unit_length_are_in_the_order_of_the_ranks():
    """They are ranked as they are; FAISS gets them normalised, which turns this pair round."""
    angles, lengths = np.array([0.45, 0.45 - 7e-6]), np.array([1 + 1.9e-6, 1 - 1.9e-6])
    points = np.zeros((2, 4), np.float32)
    points[:, :2] = (np.stack([np.cos(angles), np.sin(angles)]) * lengths).T
    names = np.array(["a", "b"])
    items = store.Embedded(points, names, names, names)
    queries = store.Embedded(np.eye(1, 4, dtype=np.float32), names[:1], names[:1], names[:1])
    scores, rows = lists.nearest(queries.embeddings, points, 2)
    assert rows.tolist() == [[1, 0]]
    ranking = metrics.rank_queries(queries.embeddings, names[:1], points, names)
    assert ranking.first.tolist() == [1]
    assert lists.in_order(scores, rows, queries, items, "cosine", 2)[1].tolist() == [[0, 1]]
