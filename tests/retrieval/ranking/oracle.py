"""Rankings in exact integer arithmetic, written as plainly as their definitions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest


def whole(rows):
    """Rows [N, D] of floats as lists of Python integers: multiplied by one power of two."""
    wide = np.asarray(rows).astype(np.float64)
    mantissa, exponent = np.frexp(wide)
    digits = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
    return (digits << (exponent - exponent.min()).astype(object)).tolist(), int(exponent.min()) - 53


def exact_scores(queries, catalogue, similarity):
    """[[score]] as Fractions that order the items of each query."""
    (a, a_exponent), (b, b_exponent) = whole(queries), whole(catalogue)
    low = min(a_exponent, b_exponent)
    if similarity == "euclidean":  # on one scale
        a = [[x << (a_exponent - low) for x in row] for row in a]
        b = [[x << (b_exponent - low) for x in row] for row in b]
        return [[-sum((x - y) ** 2 for x, y in zip(q, c, strict=True)) for c in b] for q in a]
    dots = [[sum(x * y for x, y in zip(q, c, strict=True)) for c in b] for q in a]
    if similarity == "dot":
        return dots
    squares = [[sum(x * x for x in row) for row in side] for side in (a, b)]
    return [
        [
            Fraction(abs(dot) * dot, own * square)
            for dot, square in zip(row, squares[1], strict=True)
        ]
        for row, own in zip(dots, squares[0], strict=True)
    ]


def too_close(scores):
    """Whether two cosines (squared, signed) of a query differ, but by less than 2**-64."""
    for row in scores:
        row = sorted(set(row))
        if any(b - a < Fraction(1, 2**64) for a, b in itertools.pairwise(row)):
            return True
    return False


def rank(scores, query_labels, catalogue_labels, excluded, order, ks):
    """Each query's figures by sorting: scores [Q][N], excluded {(query, item)}, order [N]."""
    rows = []
    for i, label in enumerate(query_labels):
        items = [
            (-scores[i][j], order[j], item_label == label)
            for j, item_label in enumerate(catalogue_labels)
            if (i, j) not in excluded
        ]
        items.sort()
        relevant = [right for _, _, right in items]
        total = sum(relevant)
        if not total:
            rows.append(None)
            continue
        first = relevant.index(True) + 1
        best = items[first - 1][0]
        precision = [sum(relevant[: n + 1]) / (n + 1) for n in range(len(items))]
        rows.append(
            {
                "candidates": len(items),
                "relevant": total,
                "first": first,
                "best": 1 + sum(score < best for score, _, _ in items),
                "worst": 1 + sum(score <= best and not right for score, _, right in items),
                "tied_relevant": sum(score == best and right for score, _, right in items),
                "hits": [sum(relevant[:k]) for k in ks],
                "ap": sum(precision[n] for n in range(total) if relevant[n]) / total,
                "rp": sum(relevant[:total]) / total,
            }
        )
    return rows


def check(ranking, rows):
    """Compares a `metrics.Ranking` with what `rank` returns."""
    for i, row in enumerate(rows):
        if row is None:
            assert ranking.relevant[i] == 0 and ranking.first[i] == 0
            assert math.isnan(ranking.average_precision[i])
            continue
        for name in ("candidates", "relevant", "first", "best", "worst", "tied_relevant"):
            assert getattr(ranking, name)[i] == row[name], (i, name)
        assert list(ranking.hits[i]) == row["hits"]
        assert ranking.average_precision[i] == pytest.approx(row["ap"], abs=1e-15)
        assert ranking.r_precision[i] == pytest.approx(row["rp"], abs=1e-15)
