"""Rows as a filter multiplies them: scale, center, bounds on their lengths."""

import numpy as np
import pytest

from retrieval.ranking import vectors
from retrieval.ranking.vectors import SIMILARITIES


def rows_of(random, kind):
    points = random.normal(size=(50, 7))
    if kind == "near":
        points = points[:1] + 1e-4 * points
    return points


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["spread", "near"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_dot_products_order_rows_as_the_similarity_does(similarity, kind, dtype):
    random = np.random.default_rng(3)
    queries, items = (rows_of(random, "spread").astype(dtype) for _ in range(2))
    if kind == "near":
        queries = items = rows_of(random, kind).astype(dtype)
    left, right = vectors.pair(queries, items, similarity)
    assert (right.center is not None) == (kind == "near" or similarity == "euclidean")
    scores = left.left(slice(None)) @ right.right(slice(None)).T
    q, c = queries.astype(np.longdouble)[:, None], items.astype(np.longdouble)[None]
    expected = -np.square(q - c).sum(2) if similarity == "euclidean" else (q * c).sum(2)
    if similarity == "cosine":
        expected /= np.sqrt(np.square(c).sum(2))
    for row, truth in zip(scores, expected, strict=True):
        order = np.argsort(truth)
        apart = np.diff(truth[order]) > 1e-4 * np.ptp(truth)
        assert (np.diff(row[order])[apart] > 0).all()
    for side, rows in ((left, left.left(slice(None))), (right, right.right(slice(None)))):
        length = np.linalg.norm(rows.astype(np.float64), axis=1)
        assert (length <= side.norms).all()
        assert rows.shape[1] == side.dimensions and rows.dtype == np.float32
        assert side.norms.max() < 3


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_scale_neither_overflows_nor_underflows(similarity, scale):
    random = np.random.default_rng(4)
    points = rows_of(random, "spread")
    plain, scaled = (
        vectors.pair(each, each, similarity)[0] for each in (points, points * 2.0 ** np.log2(scale))
    )
    a, b = (side.left(slice(None))[:, :7] for side in (plain, scaled))
    if similarity == "cosine":
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert np.isfinite(b).all() and np.abs(b).max() > 0.1


def test_small_float16_rows_keep_their_order():
    """Scaled as float16, these numbers of three digits or fewer would be rounded again."""
    points = (np.arange(1, 8) * np.float16(6e-8)).astype(np.float16)[:, None]
    big = np.array([[2048.0]], np.float16)
    left, right = vectors.pair(big, np.concatenate([points, big]), "dot")
    wide = right.wide(slice(None))[:, 0]
    np.testing.assert_array_equal(wide[:7] / wide[7], points[:, 0].astype(float) / 2048)


def test_some_rows_are_scaled_and_centered_like_all():
    random = np.random.default_rng(5)
    side = vectors.pair(rows_of(random, "near"), rows_of(random, "near"), "euclidean")[1]
    some = side.take(np.array([3, 1]))
    np.testing.assert_array_equal(some.right(slice(None)), side.right(np.array([3, 1])))
    np.testing.assert_array_equal(some.norms, side.norms[[3, 1]])
    assert len(some) == 2


def test_blocks_are_all_rows():
    side = vectors.Vectors(np.random.default_rng(6).normal(size=(40000, 2)), "dot")
    parts = list(side.blocks())
    assert [start for start, _ in parts] == [0, 16384, 32768]
    np.testing.assert_array_equal(
        np.concatenate([part for _, part in parts]), side.right(slice(None))
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_rows_are_found_by_value(dtype, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 20)
    random = np.random.default_rng(7)
    points = random.normal(size=(9, 3)).astype(dtype)[random.integers(0, 9, 60)]
    points[5], points[9] = 0.0, -0.0
    expected = [next(j for j in range(60) if (points[j] == points[i]).all()) for i in range(60)]
    assert vectors.equal_rows(points).tolist() == expected


def test_unequal_rows_of_one_hash_stay_apart(monkeypatch):
    monkeypatch.setattr(vectors.np, "einsum", lambda *_: np.zeros(_[1].shape[0], np.uint64))
    points = np.array([[1.0], [2.0], [1.0], [2.0]])
    assert vectors.equal_rows(points).tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize(
    ("values", "similarity", "expected"),
    [
        (np.sign(np.random.default_rng(0).normal(size=(20, 64))), "cosine", True),
        (0.125 * np.arange(20.0)[:, None], "euclidean", True),
        (np.random.default_rng(0).integers(-127, 128, (20, 512)) * 1.0, "dot", True),
        (np.random.default_rng(0).integers(-127, 128, (20, 512)) * 1.0, "cosine", False),
        (np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), "dot", False),
        (np.array([[1.0], [2.0**60]]), "dot", False),
        (np.append(np.ones(5000), 1 / 3)[:, None], "dot", False),
    ],
)
def test_small_integers_are_recognized(values, similarity, expected):
    values = np.where(values == 0, 0.0, values)
    values[0, 0] = values[0, 0] or 1.0
    if similarity == "cosine":
        values = values[values.any(1)]
    left, right = vectors.pair(values, values, similarity)
    assert left.has_few_digits == right.has_few_digits == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 0)), r"must be \[rows, dimensions\], not \[2, 0\]"),
        (np.ones(2), r"must be \[rows, dimensions\], not \[2\]"),
        (np.array([[1.0], [np.inf], [np.nan]]), r"x: row 1 is not finite \(2 such rows\)"),
        (np.array([[1.0], [0.0]]), "x: row 1 is all zeros"),
        (np.array([["a"]]), "must be real numbers"),
        (np.ones((1, 1), complex), "must be real numbers"),
        (np.ones((1, 1), np.longdouble), "at most 64 bits, not float128"),
        (np.ones((1, 1), object), "must be real numbers"),
    ],
)
def test_bad_rows_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        vectors.Vectors(values, "cosine", "x")


def test_pair_similarity():
    a, b = np.array([[3.0, 4.0]], np.float16), np.array([[4.0, 3.0]], np.float32)
    assert vectors.pair_similarity(a, b, "dot") == 24
    assert vectors.pair_similarity(a, b, "cosine") == pytest.approx(0.96)
    assert vectors.pair_similarity(a, b, "euclidean") == pytest.approx(2**0.5)
