"""The relevant items of queries in the order of their exact scores, and equal rows as one."""

from dataclasses import dataclass

import numpy as np

from retrieval.ranking import exact
from retrieval.ranking.groups import cumulative, ranges
from retrieval.ranking.vectors import Vectors, equal_rows

MERGED = 1 / 64  # share of pairs of equal items from which on equal rows are multiplied once


@dataclass
class Positives:
    """Relevant (query, item) pairs, ordered by query, then by descending score, then by id.

    Attributes:
      start: int [Q + 1], where each query's pairs begin.
      query, item: int [P], rows.
      score: float64 [P], see `exact.scores`; never rising within a query.
      error: float64 [Q], the largest error of a query's scores.
      tier: int [P], equal for pairs of a query that tie.
      high, low: float64 [P], see `exact.keys`; NaN where unknown.
      above: int [P], items found ahead of this pair and behind the one before it.
    """

    start: np.ndarray
    query: np.ndarray
    item: np.ndarray
    score: np.ndarray
    error: np.ndarray
    tier: np.ndarray
    high: np.ndarray
    low: np.ndarray
    above: np.ndarray

    @property
    def position(self) -> np.ndarray:
        """Int [P]: 1 for a query's best pair, 2 for the next."""
        return np.arange(len(self.query)) - self.start[self.query] + 1

    @property
    def rank(self) -> np.ndarray:
        """Int [P], from 1; exact if it was followed, otherwise only known to exceed its limit."""
        return self.position + cumulative(self.above, self.counts[self.counts > 0])

    @property
    def counts(self) -> np.ndarray:
        """Int [Q]: pairs of each query."""
        return np.diff(self.start)


@dataclass
class Columns:
    """The catalogue rows to multiply, and the items that each represents.

    Attributes:
      vectors: `Vectors` [C, D], the catalogue itself unless equal rows were merged.
      equal: (int [Q], int [C]), for each query and column the first one with an equal row; None if
        all rows differ.
      of: int [N], the column of each item.
      size: int [C], items per column; None if each has one.
      start: int [C + 1], where each column's items begin in `members`.
      members: int [N], column * N + order of each item, sorted.
    """

    vectors: Vectors
    equal: tuple[np.ndarray, np.ndarray] | None
    of: np.ndarray
    size: np.ndarray | None
    start: np.ndarray
    members: np.ndarray

    def smaller(self, column, order) -> np.ndarray:
        """Int [n]: items of columns [n] whose order is below `order` [n]."""
        at = np.searchsorted(self.members, column * len(self.of) + order)
        return at - self.start[column]

    def sizes(self, column) -> np.ndarray:
        return np.ones(len(column), np.int64) if self.size is None else self.size[column]


def relevant_pairs(query_labels, item_labels, excluded):
    """Pairs with equal labels.

    Args:
      query_labels: int or str [Q]. item_labels: [N] of the same.
      excluded: (query [E], item [E]), distinct pairs that are not returned.

    Returns:
      (query int [P], item int [P]), ordered by query, then by item.
    """
    by_label = np.argsort(item_labels, kind="stable")
    ordered = item_labels[by_label]
    low = np.searchsorted(ordered, query_labels, "left")
    count = np.searchsorted(ordered, query_labels, "right") - low
    query = np.repeat(np.arange(len(query_labels)), count)
    item = by_label[ranges(low, count)]
    some, out = excluded
    alike = item_labels[out] == query_labels[some]
    some, out = some[alike], out[alike]
    if not len(some):
        return query, item
    place = np.empty(len(by_label), np.int64)
    place[by_label] = np.arange(len(by_label))
    keep = np.ones(len(query), bool)
    keep[(np.cumsum(count) - count)[some] + place[out] - low[some]] = False
    return query[keep], item[keep]


def columns_of(queries, catalogue, order):
    """The catalogue's `Columns`; equal rows are merged if they would take most of the time."""
    count = len(catalogue)
    items = np.arange(count)
    first = equal_rows(catalogue.values)
    asking = first if queries.values is catalogue.values else equal_rows(queries.values)
    number = np.bincount(first, minlength=count)
    if np.square(number, dtype=float).sum() - count <= MERGED * count**2:
        differ = (first == items).all() and (asking == np.arange(len(asking))).all()
        equal = None if differ else (asking, first)
        return Columns(
            catalogue, equal, items, None, np.append(items, count), items * count + order
        )
    rows = np.flatnonzero(number)
    of = np.searchsorted(rows, first)
    size = number[rows]
    start = np.append(0, np.cumsum(size))
    vectors, equal = catalogue.take(rows), (asking, np.arange(len(rows)))
    return Columns(vectors, equal, of, size, start, np.sort(of * count + order))


def ordered(pool, queries, columns, query, item, order, count):
    """`Positives` of relevant pairs."""
    column = columns.of[item]
    if queries is columns.vectors and not queries.has_few_digits:  # (a, b) scores as (b, a) does
        pair = np.minimum(query, column) * len(queries) + np.maximum(query, column)
        pair, back = np.unique(pair, return_inverse=True)
        found = of_pairs(exact.scores, pool, queries, columns, *np.divmod(pair, len(queries)))
        score, error = (each[back] for each in found)
    else:
        score, error = of_pairs(exact.scores, pool, queries, columns, query, column)

    def find_keys(at):
        return of_pairs(exact.keys, pool, queries, columns, query[at], columns.of[item[at]])

    by, score, tier, high, low = exact.order(query, score, error, order[item], find_keys)
    query, item, error = query[by], item[by], error[by]
    start = np.searchsorted(query, np.arange(count + 1))
    largest = np.zeros(count)
    filled = np.flatnonzero(np.diff(start))
    if len(filled):
        largest[filled] = np.maximum.reduceat(error, start[filled])
    return Positives(
        start, query, item, score, largest, tier, high, low, np.zeros(len(query), np.int64)
    )


def of_pairs(function, pool, queries, columns, query, column):
    """`exact.scores` or `exact.keys` of pairs, those of equal rows once."""
    if columns.equal is None:
        return exact.in_parts(function, queries, columns.vectors, query, column, pool.map)
    pair = columns.equal[0][query] * len(columns.vectors) + columns.equal[1][column]
    pair, back = np.unique(pair, return_inverse=True)
    query, column = np.divmod(pair, len(columns.vectors))
    found = exact.in_parts(function, queries, columns.vectors, query, column, pool.map)
    return tuple(each[back] for each in found)
