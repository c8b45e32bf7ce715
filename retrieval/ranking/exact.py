"""Scores of single pairs: in float64 with a bound on the error, and in twice that precision.

`scores` decides nearly all pairs that a filter cannot (see `retrieval.ranking.counting`). Pairs
whose float64 scores lie within their error bounds are compared by `keys`, which sums in
double-double arithmetic (Dekker, "A floating-point technique for extending the available
precision", 1971; Knuth's error-free sum). Its error is about 2**-100 of the sum of absolute terms;
keys are rounded to between 2**-85 and 2**-69 of it, so equal similarities get equal keys.
"""

import numpy as np

U = 2.0**-53  # float64's unit of rounding
KEPT = 85  # binary digits of a key
PART = 2**17  # numbers per part of the work: few enough to stay in the cache


def scores(left, right, query, item):
    """Float64 scores of pairs of rows.

    Args:
      left, right: `Vectors` of queries and catalogue, as `vectors.pair` returns them.
      query, item: int [n], rows of each.

    Returns:
      (float64 [n], float64 [n]): scores, larger for nearer, and bounds on their errors. Within one
      query the scores order the items: -|q - c|²/2 of unit rows for the cosine, of the rows for
      euclidean; q·c, less a constant of the query, for dot. All are scaled by a power of two.
    """
    dimensions = left.values.shape[1]
    if left.has_few_digits and left.similarity == "cosine":
        score = _few_digits(left.raw(query), right.raw(item))
        return score, np.zeros(len(score))
    if left.similarity == "dot":
        score = np.einsum("ij,ij->i", left.wide(query), right.prepared(item))
        if left.has_few_digits:
            return score, np.zeros(len(score))
        return score, (dimensions + 8) * U * left.norms[query] * right.norms[item] + 1e-300
    difference = left.wide(query)  # a copy, since `query` is an array
    difference -= right.wide(item)
    score = np.einsum("ij,ij->i", difference, difference) / -2
    if left.has_few_digits:
        return score, np.zeros(len(score))
    error = (2 * dimensions + 16) * U * -score + 1e-300
    if left.similarity == "cosine":  # the rows' own rounding, and that of their lengths
        unit = np.ldexp(1.0, -left.exponent)
        error += 8 * U * unit * np.sqrt(-2 * score) + np.square(2 * (dimensions + 8) * U * unit)
    return score, error


def _few_digits(q, c):
    """Cosines less 1 of rows [n, D] that are small integers but for a power of two per row.

    Equal cosines are equal here, too: dot**2 / |c|**2 is a correctly rounded quotient of integers.
    """
    dot, square = np.einsum("ij,ij->i", q, c), np.einsum("ij,ij->i", c, c)
    root = np.sqrt(dot * dot / square / np.einsum("ij,ij->i", q, q))
    return np.copysign(root, dot) - 1


def largest_error(left, right):
    """A bound [Q] on the error of `scores` for any item."""
    norms = left.norms * right.norms.max(initial=0)
    dimensions = left.values.shape[1]
    error = (2 * dimensions + 16) * U * 2 * norms + 1e-300
    if left.similarity == "cosine":
        unit = np.ldexp(1.0, -left.exponent)
        error += 16 * U * unit * norms + np.square(2 * (dimensions + 8) * U * unit)
    return error


def keys(left, right, query, item):
    """Scores of pairs of rows in twice float64's precision.

    Args and order as for `scores`. Keys of one query compare with each other only.

    Returns:
      (float64 [n], float64 [n]): high and low part; pairs compare by high, then by low.
    """
    if left.has_few_digits:
        score = scores(left, right, query, item)[0]
        return score, np.zeros(len(score))
    if left.similarity == "euclidean":
        q, c = left.wide(query), right.wide(item)
        high, low = _sum(q, -c)
        square = _product(high, high)
        high, low = _total(square[0], square[1] + 2 * high * low)
        high, low = -high, -low
        size = np.abs(high)
    elif left.similarity == "dot":
        high, low = _total(*_product(left.wide(query), right.wide(item)))
        size = np.ldexp(left.lengths[query], -left.exponent)
        size = size * np.ldexp(right.lengths[item], -right.exponent)
    else:
        root = _root(_times(_squares(left, query), _squares(right, item)))
        high, low = _divide(_total(*_product(left.raw(query), right.raw(item))), root)
        size = np.ones(len(high))
    # One grid for sizes from 2**-12 to 16, so that items that tie are rounded alike.
    step = (4 - np.frexp(size)[1]) // 16 * 16
    grid = np.ldexp(1.0, np.maximum(4 - step - KEPT, -1000))
    return _sum(high, np.rint(low / grid) * grid)


def _squares(side, rows):
    """Squared lengths (high [n], low [n]) of raw rows, computed once per row."""
    high, low = side.squares
    new = np.unique(rows[np.isnan(high[rows])])
    if len(new):
        raw = side.raw(new)
        # High last: another thread that sees it may use both.
        found, low[new] = _total(*_product(raw, raw))
        high[new] = found
    return high[rows], low[rows]


def order(query, score, error, identifier, find_keys):
    """Sorts pairs by query, then by descending score, then by ascending identifier.

    Args:
      query: int [n]. score, error: float64 [n], as `scores` returns them.
      identifier: int [n], which breaks ties.
      find_keys: function (places int [m]) -> `keys` of those pairs.

    Returns:
      (by, score, tier, high, low): by int [n] sorts the pairs. In that order: score float64 [n],
      which never rises within a query and is within the largest error; tier int [n], equal for
      pairs of a query that tie; high, low float64 [n], the keys, NaN where no key was needed.
    """
    by = np.lexsort((identifier, -score, query))
    count = len(by)
    high, low = np.full(count, np.nan), np.full(count, np.nan)
    if not count:
        return by, score, by, high, low
    score, error = score[by], error[by]
    # Runs of pairs so close to each other that rounding may have changed their order.
    close = (query[by][1:] == query[by][:-1]) & (score[:-1] - score[1:] <= error[:-1] + error[1:])
    run = np.cumsum(np.append(True, ~close))
    several = np.append(False, close) | np.append(close, False)
    if several.any():
        high[several], low[several] = find_keys(by[several])
        within = np.lexsort((identifier[by], -low, -high, run))
        by, high, low = by[within], high[within], low[within]
    tie = close & (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return by, score, np.cumsum(np.append(True, ~tie)), high, low


def in_parts(function, left, right, query, item, mapped=map):
    """Calls `scores` or `keys` on parts of the pairs, which bounds the memory.

    Args:
      function, left, right, query, item: the function and its arguments.
      mapped: `map`, or that of a pool of threads.
    """
    step = max(1, PART // left.dimensions)

    def part(i):
        return function(left, right, query[i : i + step], item[i : i + step])

    parts = mapped(part, range(0, max(1, len(query)), step))
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def _sum(a, b):
    """a + b as (rounded sum, its error)."""
    total = a + b
    shift = total - a
    return total, (a - (total - shift)) + (b - shift)


def _product(a, b):
    """a * b as (rounded product, its error)."""
    total = a * b
    (a, a_rest), (b, b_rest) = (_halves(each) for each in (a, b))
    return total, ((a * b - total) + a * b_rest + a_rest * b) + a_rest * b_rest


def _halves(a):
    """a as a sum of two numbers of at most 26 digits."""
    shifted = a * (2.0**27 + 1)
    half = shifted - (shifted - a)
    return half, a - half


def _total(high, low):
    """Sums [n, D] along the rows: (high [n], low [n])."""
    while high.shape[1] > 1:
        if high.shape[1] % 2:
            high, low = (np.pad(each, ((0, 0), (0, 1))) for each in (high, low))
        half = high.shape[1] // 2
        high, error = _sum(high[:, :half], high[:, half:])
        low = low[:, :half] + low[:, half:] + error
    return _sum(high[:, 0], low[:, 0])


def _times(a, b):
    high, low = _product(a[0], b[0])
    return _sum(high, low + (a[0] * b[1] + a[1] * b[0]))


def _less(a, b):
    high, low = _sum(a[0], -b[0])
    return _sum(high, low + (a[1] - b[1]))


def _root(a):
    root = np.sqrt(a[0])
    rest = _less(a, _product(root, root))
    return _sum(root, rest[0] / (2 * root))


def _divide(a, b):
    first = a[0] / b[0]
    rest = _less(a, _times((first, 0.0), b))
    second = rest[0] / b[0]
    rest = _less(rest, _times((second, 0.0), b))
    high, low = _sum(first, second)
    return _sum(high, low + rest[0] / b[0])
