"""Scores of pairs against fractions: their bounds hold, and keys compare as fractions do."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.ranking import exact, vectors
from retrieval.ranking.vectors import SIMILARITIES


def fractions(rows):
    return [[Fraction(float(x)) for x in row] for row in rows]


def real_scores(left, right, query, item):
    """`exact.scores` without rounding, as (sign and square) Fractions or scores."""
    q, c = fractions(left.values[query]), fractions(right.values[item])
    unit = Fraction(2) ** -(left.exponent + right.exponent)
    found = []
    for a, b in zip(q, c, strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        if left.similarity == "dot":
            center = right.center if right.center is not None else np.zeros(len(a))
            found.append(
                (dot - sum(x * Fraction(float(y)) for x, y in zip(a, center, strict=True))) * unit
            )
        elif left.similarity == "euclidean":
            found.append(-sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 2 * unit)
        else:  # to 60 digits
            square = dot**2 / (sum(x * x for x in a) * sum(y * y for y in b))
            root = Fraction(math.isqrt(int(square * 10**120)), 10**60)
            found.append(((root if dot > 0 else -root) - 1) * unit)
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    similarity=st.sampled_from(SIMILARITIES),
    dimensions=st.sampled_from([1, 2, 5, 64, 2048]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    spread=st.sampled_from([1.0, 1e-3, 1e-7]),
    power=st.sampled_from([-30, 0, 30]),
)
def test_float64_scores_lie_within_their_bounds(seed, similarity, dimensions, dtype, spread, power):
    random = np.random.default_rng(seed)
    count = 3 if dimensions > 100 else 10
    base = random.normal(size=(1, dimensions))
    scale = 10.0**power if dtype != np.float16 else 1.0
    queries, items = (
        ((base + spread * random.normal(size=(count, dimensions))) * scale).astype(dtype)
        for _ in range(2)
    )
    left, right = vectors.pair(queries, items, similarity)
    query, item = (each.ravel() for each in np.mgrid[:count, :count])
    score, error = exact.scores(left, right, query, item)
    largest = exact.largest_error(left, right)
    for n, real in enumerate(real_scores(left, right, query, item)):
        assert abs(Fraction(float(score[n])) - real) <= Fraction(float(error[n]))
        assert error[n] <= largest[query[n]]
    # The keys are nearer by far, whatever the scale and the center of the scores.
    high, low = exact.keys(left, right, query, item)
    for q in range(count):
        at = np.flatnonzero(query == q)
        reals = real_scores(left, right, query[at], item[at])
        by_key = np.lexsort((low[at], high[at]))
        ordered = [reals[n] for n in by_key]
        assert ordered == sorted(ordered)


def test_keys_of_equal_similarity_are_equal():
    """Other rows, but the same cosine, distance or dot product, which float64 cannot tell."""
    items = np.array([[1.0, 2, 3], [3, 6, 9], [7, 14, 21]]) / np.array([[1.0], [1], [8]])
    queries = np.array([[0.3, 0.7, 0.1]])
    left, right = vectors.pair(queries, items, "cosine")
    high, low = exact.keys(left, right, np.zeros(3, int), np.arange(3))
    assert len(set(zip(high.tolist(), low.tolist(), strict=True))) == 1
    permuted = np.array([[0.1, 0.2, 0.7], [0.7, 0.1, 0.2], [0.2, 0.7, 0.1]])
    for similarity in SIMILARITIES:
        left, right = vectors.pair(np.full((1, 3), 1 / 3), permuted, similarity)
        high, low = exact.keys(left, right, np.zeros(3, int), np.arange(3))
        assert len(set(zip(high.tolist(), low.tolist(), strict=True))) == 1, similarity


def test_order_asks_for_keys_of_close_pairs_only():
    score = np.array([1.0, 3.0, 2.0, 2.0 + 1e-12, 2.0])
    query = np.array([0, 0, 0, 0, 1])
    asked = []

    def keys(at):
        asked.extend(at.tolist())
        return np.zeros(len(at)), np.zeros(len(at))  # they tie after all

    by, ordered, tier, high, low = exact.order(
        query, score, np.full(5, 1e-12), np.array([0, 1, 3, 2, 4]), keys
    )
    assert by.tolist() == [1, 3, 2, 0, 4] and sorted(asked) == [2, 3]
    assert tier.tolist() == [1, 2, 2, 3, 4]
    assert (np.diff(ordered[:4]) <= 0).all()
    assert np.isnan(high).tolist() == [True, False, False, True, True]


def test_parts_are_joined(monkeypatch):
    monkeypatch.setattr(exact, "PART", 8)
    points = np.random.default_rng(0).normal(size=(20, 2))
    left, right = vectors.pair(points, points, "dot")
    rows = np.arange(20)
    whole = exact.scores(left, right, rows, rows[::-1])
    parts = exact.in_parts(exact.scores, left, right, rows, rows[::-1])
    np.testing.assert_array_equal(whole, parts)
    assert [len(each) for each in exact.in_parts(exact.keys, left, right, rows[:0], rows[:0])] == [
        0, 0,
    ]  # fmt: skip
