"""Ranks by counting, against sorting in exact arithmetic."""

import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retrieval import metrics
from retrieval.ranking import counting, kernels, relevant

spec = importlib.util.spec_from_file_location(
    "oracle", pathlib.Path(__file__).with_name("oracle.py")
)
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)


def draw(random, kind, rows, dimensions, dtype, scale):
    """Rows [rows, dimensions] of one difficult kind."""
    if kind == "small integers":
        points = random.integers(-2, 3, (rows, dimensions)).astype(np.float64)
        points[~points.any(1), 0] = 1
    elif kind == "lattice":  # a few units of the last digit about one row, float32's for float64
        base = random.choice([1.0, random.normal()], dimensions)
        base = base.astype(np.result_type(dtype) if dtype != np.float64 else np.float32)
        points = base + np.spacing(base) * random.integers(-2, 3, (rows, dimensions)).astype(float)
    elif kind == "proportional":  # one direction, many lengths
        points = random.integers(-3, 4, (4, dimensions))[random.integers(0, 4, rows)]
        points = points * random.integers(1, 9, (rows, 1)).astype(np.float64)
        points[~points.any(1), 0] = 1
    elif kind == "lengths":
        points = random.normal(size=(rows, dimensions))
        if dtype != np.float16:
            points *= 10.0 ** random.integers(-6, 7, (rows, 1))
    else:
        points = random.normal(size=(rows, dimensions))
    if kind == "copies":
        points = points[random.integers(0, max(1, rows // 6), rows)]
    if kind == "collapsed":
        points = points[:1] + 1e-6 * points * random.integers(0, 2, (rows, 1))
        points = points.astype(np.float32).astype(np.float64)
    if kind in ("small integers", "lattice", "proportional", "collapsed"):
        # Rounding float64 rows would move similarities by less than two doubles can hold.
        scale = 2.0 ** round(np.log2(scale))
    points = (points * scale).astype(dtype)
    zero = ~points.any(1)
    points[zero] = np.finfo(dtype).smallest_subnormal
    return points


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(
        ["normal", "small integers", "lattice", "proportional", "lengths", "copies", "collapsed"]
    ),
    rows=st.integers(2, 60),
    dimensions=st.sampled_from([1, 2, 3, 17, 100]),
    products=st.integers(1, 20),
    similarity=st.sampled_from(metrics.SIMILARITIES),
    filter=st.sampled_from(["float32", "bfloat16", "int8"]),
    dtypes=st.tuples(*[st.sampled_from([np.float16, np.float32, np.float64])] * 2),
    power=st.integers(-30, 30),
    own_set=st.booleans(),
    merge=st.booleans(),
)
def test_counting_equals_sorting_in_exact_arithmetic(
    seed, kind, rows, dimensions, products, similarity, filter, dtypes, power, own_set, merge
):
    """Blocks of a few rows, so that every edge of the blocking is met."""
    random = np.random.default_rng(seed)
    scale = 10.0**power if np.float16 not in dtypes else 10.0 ** (power % 9 - 7)
    points = draw(random, kind, rows, dimensions, dtypes[0], scale)
    labels = random.integers(0, products, rows)
    half = rows if own_set else rows // 2
    with np.errstate(over="ignore"):
        queries, items = points[:half], points if own_set else points.astype(dtypes[1])
    if not items.any(1).all() or not np.isfinite(items).all():
        return
    count = int(random.integers(0, rows))
    pairs = random.integers(0, half, count), random.integers(0, rows, count)
    order = random.permutation(rows)
    small = {"SUPER": 32, "TILE": 8, "DEEP": int(random.integers(9))}
    small |= {"PENDING": int(random.integers(99))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(counting, name, value)
        patch.setattr(relevant, "MERGED", 0 if merge else 2)
        patch.setattr(metrics, "PAIRS", int(random.choice([50, 10**6])))
        sets = (queries, labels) if own_set else (queries, labels[:half], items, labels)
        ids = {"query_ids": order} if own_set else {"catalogue_ids": order}
        ranking = metrics.rank_queries(
            *sets, similarity=similarity, precision_at=(1, 4), filter=filter, threads=2,
            excluded=pairs, **ids,
        )  # fmt: skip
    scores = oracle.exact_scores(queries, items, similarity)
    # Such cosines tie: float64 cannot hold them apart, nor can its double.
    assume(similarity != "cosine" or not oracle.too_close(scores))
    excluded = set(zip(*(each.tolist() for each in pairs), strict=True))
    expected = oracle.rank(
        scores, labels[:half].tolist(), labels.tolist(), excluded, order.tolist(), (1, 4)
    )
    oracle.check(ranking, expected)


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_filters_agree_over_several_tiles(similarity):
    """Real tiles, with a last one that is not full; scores crowd, so that bfloat16 tells few."""
    random = np.random.default_rng(9)
    labels = random.integers(0, 300, 1300)
    points = (1 + 0.02 * random.normal(size=(1300, 70))).astype(np.float32)
    points += (0.03 * random.normal(size=(300, 70)))[labels].astype(np.float32)
    found = [
        metrics.rank_queries(points, labels, similarity=similarity, filter=name, threads=2)
        for name in kernels.FILTERS[1:]
    ]
    assert tuple(ranking.filter for ranking in found) == kernels.FILTERS[1:]
    for name in ("first", "best", "worst", "hits", "average_precision", "tied"):
        for ranking in found[1:]:
            np.testing.assert_array_equal(getattr(found[0], name), getattr(ranking, name))


def test_auto_takes_int8_where_it_decides_nearly_all(monkeypatch):
    """Products far apart, as trained models have them, and random ones."""
    random = np.random.default_rng(3)
    labels = np.arange(600) // 3
    noise = random.normal(size=(600, 64)).astype(np.float32)
    apart = 3 * random.normal(size=(200, 64)).astype(np.float32)[labels] + noise
    monkeypatch.setattr(kernels, "WORTH", 0)
    monkeypatch.setattr(kernels, "_has", lambda _: True)
    for points, chosen in (apart, "int8"), (noise, "bfloat16"):
        for sets in (points, labels), (points[::2], labels[::2], points[1::2], labels[1::2]):
            found = metrics.rank_queries(*sets)
            assert found.filter == chosen
            exact = metrics.rank_queries(*sets, filter="float32")
            np.testing.assert_array_equal(found.first, exact.first)


@pytest.mark.parametrize(
    ("has", "chosen"),
    [
        (("icelake", "genoa", "sapphire", "sapphireamx"), "bfloat16"),
        (("icelake", "genoa"), "bfloat16"),
        (("icelake", "genoa", "sapphire"), "float32"),
        ((), "float32"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_faster(monkeypatch, has, chosen):
    """Euclidean distances, which int8 does not serve."""
    points = np.random.default_rng(5).normal(size=(40, 8)).astype(np.float32)
    monkeypatch.setattr(kernels, "WORTH", 0)
    monkeypatch.setattr(kernels, "_has", lambda name: name in has)
    found = metrics.rank_queries(points, np.arange(40) // 2, similarity="euclidean")
    assert found.filter == chosen


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


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
@pytest.mark.parametrize("dimensions", [512, 2048])
def test_many_dimensions_are_exact(similarity, dimensions):
    """One unit of the last digit apart, in all of many dimensions."""
    random = np.random.default_rng(dimensions)
    points = draw(random, "lattice", 24, dimensions, np.float32, 1.0)
    labels = random.integers(0, 6, 24)
    ranking = metrics.rank_queries(points, labels, similarity=similarity, precision_at=(1, 4))
    itself = {(n, n) for n in range(24)}
    scores = oracle.exact_scores(points, points, similarity)
    expected = oracle.rank(scores, labels.tolist(), labels.tolist(), itself, range(24), (1, 4))
    oracle.check(ranking, expected)
