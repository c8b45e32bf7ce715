"""Exact ranks of relevant items by counting, without sorting the catalogue.

The rank of a relevant item is one plus the number of items that stand before it. Those are counted
while tiles of the score matrix pass by, so that neither the matrix nor a list of neighbours is
ever held. Scores come from a filter, a float32 or bfloat16 matrix product whose error is bounded
(see `retrieval.ranking.kernels`). An item whose score lies within the bound of a relevant item's is set
aside: scored in float32 if bfloat16 could not tell, and by the float64 dot product, which decides,
if float32 cannot tell either. The result equals a float64 evaluation on every query, ties included.

Only ranks that can matter are followed. For MAP@R and precision@k an item ranked behind
max(R, k) contributes nothing, so that its threshold is dropped as soon as enough items are seen
above it; the best relevant item is followed to the end, or up to `depth`.

Where the queries are the catalogue, each pair of tiles is multiplied once and counted twice: along
its rows for one tile's queries, along its columns for the other's.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval import progress
from retrieval.ranking import kernels
from retrieval.ranking.vectors import pair_scores

SUPER = 16384  # rows made ready at a time, fewer where they are very long
TILE = 1024  # rows and columns of one matrix product
DEEP = 256  # items before the first relevant one from which on they are only counted
PENDING = 2**20  # pairs that wait for float64 at a time
CHUNK = 2**22  # numbers that one thread scores in float64 at a time


@dataclass
class Positives:
    """Relevant (query, item) pairs, ordered by query, then by descending score, then by id.

    start [Q + 1]: where each query's pairs begin. query, item [P]: rows. score float64 [P].
    position [P]: 1 for a query's best pair, 2 for the next. above [P]: items found to stand before
    this pair and behind the one before it. rank [P]: 1-based; exact where it was followed,
    otherwise only known to be beyond its limit.
    """

    start: np.ndarray
    query: np.ndarray
    item: np.ndarray
    score: np.ndarray
    position: np.ndarray
    above: np.ndarray

    @property
    def rank(self):
        return self.position + _cumulative(self.above, self.counts[self.counts > 0])

    @property
    def counts(self):
        return np.diff(self.start)


@dataclass
class Counted:
    """positives: `Positives`. For each query [Q]: tied: other items that score as the best positive
    does, tied_relevant: positives that do, before: those of `tied` with a smaller id, decided:
    whether float64 was needed. filter: its name.
    """

    positives: Positives
    tied: np.ndarray
    tied_relevant: np.ndarray
    before: np.ndarray
    decided: np.ndarray
    filter: str


def relevant_pairs(query_labels, catalogue_labels, own):
    """Rows (query [P], item [P]) with equal labels, the query itself left out."""
    by_label = np.argsort(catalogue_labels, kind="stable")
    ordered = catalogue_labels[by_label]
    low = np.searchsorted(ordered, query_labels, "left")
    count = np.searchsorted(ordered, query_labels, "right") - low
    query = np.repeat(np.arange(len(query_labels)), count)
    item = by_label[_ranges(low, count)]
    keep = item != own[query]
    return query[keep], item[keep]


def _ranges(start, count):
    """Concatenation of arange(s, s + n) for every (s, n)."""
    ends = np.cumsum(count)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - count), count)


def cores():
    return len(os.sched_getaffinity(0))


def count_ranks(
    queries,
    catalogue,
    query_labels,
    catalogue_labels,
    own,
    order,
    limit,
    *,
    depth=None,
    threads=None,
    filter="auto",
) -> Counted:
    """Counts the items that stand before each query's relevant ones.

    queries, catalogue: `Vectors`, the same object where the sets are the same. Labels: codes [Q]
    and [N]. own [Q]: the query's own row in the catalogue, or -1. order [N]: ranks that break ties.
    limit [Q]: ranks beyond it need not be told apart, except the first's. depth: the first's
    rank need not be followed beyond it, None for to the end. threads: None for all cores. filter:
    one of `kernels.FILTERS`.
    """
    threads = threads or cores()
    query, item = relevant_pairs(query_labels, catalogue_labels, own)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        score = _scores(pool, queries, catalogue, query, item)
        by = np.lexsort((order[item], -score, query))
        query, item, score = query[by], item[by], score[by]
        start = np.searchsorted(query, np.arange(len(query_labels) + 1))
        position = np.arange(len(query)) - start[query] + 1
        above = np.zeros(len(query), np.int64)
        p = Positives(start, query, item, score, position, above)
        product = kernels.choose(filter, queries, catalogue, threads)
        counting = _Counting(queries, catalogue, product, p, own, order, limit, depth)
        counting.run(pool)
    best = score == score[start[query]]
    tied_relevant = np.bincount(query, best, minlength=len(query_labels)).astype(np.int64)
    return Counted(p, counting.tied, tied_relevant, counting.before, counting.decided, product.name)


def _scores(pool, queries, catalogue, query, item):
    """Float64 scores of pairs of rows."""
    score = np.empty(len(query))
    step = max(1, CHUNK // max(1, queries.dimensions))

    def part(i):
        rows = slice(i, i + step)
        score[rows] = pair_scores(queries.left(query[rows]), catalogue.right(item[rows]))

    list(pool.map(part, range(0, len(query), step)))
    return score


class _Counting:
    """The pass over the tiles. Shared arrays are changed under the lock only."""

    def __init__(self, queries, catalogue, product, positives, own, order, limit, depth):
        self.queries, self.catalogue, self.product = queries, catalogue, product
        self.p, self.order, self.limit = positives, order, limit
        self.symmetric = queries is catalogue
        self.depth = np.inf if depth is None else depth
        self.lock = threading.Lock()
        self.local = threading.local()
        self.waiting, self.num_waiting = [], 0
        p, count = positives, len(own)
        self.first = p.start[:-1]
        self.tied, self.before = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.decided = np.zeros(count, bool)
        # Queries follow each other on one axis, so that one sorted array serves them all.
        self.span = 4 * (queries.norms.max(initial=0) * catalogue.norms.max(initial=0) + 1)
        self.key = p.query * self.span - p.score
        rounding = self.span * count * 2.0**-51
        self.bound = product.bound + rounding
        self.bound32 = kernels.float32_bound(queries, catalogue) + rounding
        best = np.full(count, np.inf)
        answerable = np.flatnonzero(p.counts)
        best[answerable] = p.score[self.first[answerable]]
        self.low = (best - self.bound).astype(np.float32)
        self.high = (best + self.bound).astype(np.float32)
        self.floor = np.full(count, np.inf, np.float32)
        self.deep = np.zeros(count, bool)
        self.refresh(answerable)
        self.masked = _by_tile(p, own)

    def run(self, pool):
        rows, columns = (-(-len(side) // TILE) for side in (self.queries, self.catalogue))
        tiles = rows * (rows + 1) // 2 if self.symmetric else rows * columns
        for _ in progress.track(self.products(pool), tiles, "exact ranks, tiles of scores"):
            pass
        self.decide(pool, *self.taken())

    def products(self, pool):
        """Goes through all tiles and yields as each is done."""
        n, m = len(self.queries), len(self.catalogue)
        step = max(TILE, min(SUPER, 2**24 // self.queries.dimensions) // TILE * TILE)
        for i in range(0, n, step):
            lefts = self.tiles(pool, self.queries.left, self.product.left, i, min(i + step, n))
            for j in range(i if self.symmetric else 0, m, step):
                rights = self.tiles(
                    pool, self.catalogue.right, self.product.right, j, min(j + step, m)
                )
                same = self.symmetric and i == j
                pairs = ((a, b) for y, a in enumerate(lefts) for b in rights[y if same else 0 :])
                yield from pool.map(lambda pair: self.tile(*pair[0], *pair[1]), pairs)

    def tiles(self, pool, ready, prepare, start, end):
        """[(first row, float32 rows, the same as the filter multiplies them)] of rows in turn."""

        def part(i):
            rows = ready(slice(i, min(i + TILE, end)))
            return i, rows, prepare(rows)

        return list(pool.map(part, range(start, end, TILE)))

    def tile(self, i, left, a, j, right, b):
        s = self.product.multiply(a, b, self.local)
        self.mask(s, i, j, len(right))
        found = [self.along_rows(s, i, j, len(left))]
        if self.symmetric and i != j:
            found.append(self.along_columns(s, i, j, len(right)))
        *pairs, score = _joined(above for above, _ in found)
        near = self.place(pairs[0], score, self.bound)
        touched = pairs[0]
        # What this product cannot tell, the next finer one does.
        query, item, row, column = _joined(
            [[part[near] for part in pairs], *(unsure for _, unsure in found)]
        )
        if self.product.name != "float32" and len(query):
            if len(query) > s.size // 64:  # as much work as the whole tile
                score = np.matmul(left, right.T)[row, column]
            else:
                score = np.einsum("ij,ij->i", left[row], right[column])
            near = self.place(query, score, self.bound32)
            query, item = query[near], item[near]
        self.refresh(touched)
        self.wait(query, item)

    def mask(self, s, i, j, items):
        """Takes relevant pairs and the query itself out of a tile of scores."""
        query, item = self.masked[i // TILE]
        low, high = np.searchsorted(item, [j, j + items])
        panel, column = np.divmod(item[low:high] - j, s.shape[2])
        s[panel, query[low:high] - i, column] = -np.inf

    def along_rows(self, s, i, j, rows):
        """What a tile holds for the queries of its rows: two tuples of arrays.

        (query, item, row, column, score) of the items above some threshold, and (query, item, row,
        column) of what queries whose items are only counted, which is done here, cannot tell.
        """
        with self.lock:  # floor and deep change together, also while this tile is counted
            floor = self.floor[i : i + rows].copy()
            deep = np.flatnonzero(self.deep[i : i + rows])
        row, column, score = self.above(s, floor[:, None])
        scores = s[:, deep].transpose(1, 0, 2).reshape(len(deep), s.shape[0] * s.shape[2])
        r, c = self.count_deep(scores, i + deep)
        r = deep[r]
        return (i + row, j + column, row, column, score), (i + r, j + c, r, c)

    def along_columns(self, s, i, j, columns):
        """The same for the queries of its columns."""
        floor = np.full(s.shape[0] * s.shape[2], np.inf, np.float32)
        with self.lock:
            floor[:columns] = self.floor[j : j + columns]
            deep = np.flatnonzero(self.deep[j : j + columns])
        row, column, score = self.above(s, floor.reshape(s.shape[0], 1, s.shape[2]))
        c, r = self.count_deep(s[deep // s.shape[2], :, deep % s.shape[2]], j + deep)
        c = deep[c]
        return (j + column, i + row, row, column, score), (j + c, i + r, r, c)

    def above(self, s, floor):
        at = np.flatnonzero(s >= floor)
        panel, rest = np.divmod(at, s.shape[1] * s.shape[2])
        row, column = np.divmod(rest, s.shape[2])
        return row, panel * s.shape[2] + column, s.reshape(-1)[at]

    def place(self, query, score, bound):
        """Counts items that stand above some threshold of their query's, each where it stands.

        Returns a mask of those within the bound of a threshold, which are not counted.
        """
        if not len(query):
            return np.zeros(0, bool)
        offset, last = self.p.start[query.min()], self.p.start[query.max() + 1]
        keys = self.key[offset:last]
        key = query * self.span - score
        at = np.searchsorted(keys, key)
        gap = np.minimum(
            key - keys[np.maximum(at - 1, 0)], keys[np.minimum(at, len(keys) - 1)] - key,
            where=(at > 0) & (at < len(keys)), out=np.zeros(len(key)),
        )  # fmt: skip
        near = gap <= bound[query]
        sure = at[~near] + offset
        sure = sure[sure < self.p.start[query[~near] + 1]]
        with self.lock:
            np.add.at(self.p.above, sure, 1)
        return near

    def count_deep(self, scores, query):
        """Counts [deep, items] for queries whose first relevant item has many items before it.

        Returns the (row, column) of scores that could stand on either side of it.
        """
        if not len(query):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        above = np.count_nonzero(scores > self.high[query, None], axis=1)
        maybe = np.count_nonzero(scores >= self.low[query, None], axis=1)
        with self.lock:
            self.p.above[self.first[query]] += above
        if self.depth < np.inf:
            self.refresh(query)
        unsure = np.flatnonzero(maybe > above)
        some = scores[unsure]
        low, high = (bound[query[unsure], None] for bound in (self.low, self.high))
        row, column = np.nonzero((some >= low) & (some <= high))
        return unsure[row], column

    def refresh(self, queries):
        """Drops the thresholds of these queries that can no longer matter."""
        if not len(queries):
            return
        low = queries.min()
        rows = np.flatnonzero(np.bincount(queries - low)) + low
        with self.lock:
            self._refresh(rows)

    def _refresh(self, rows):
        start = self.first[rows]
        count = self.p.start[rows + 1] - start
        pairs = _ranges(start, count)
        # Ranks rise with the position, so that those that matter come first.
        rank = self.p.position[pairs] + _cumulative(self.p.above[pairs], count)
        alive = rank <= np.repeat(self.limit[rows], count)
        begin = np.cumsum(count) - count
        alive[begin] = rank[begin] <= self.depth
        live = np.add.reduceat(alive, begin, dtype=np.int64)
        low = self.p.score[start + np.maximum(live, 1) - 1] - self.bound[rows]
        deep = (live == 1) & (rank[begin] > DEEP)
        self.deep[rows] = deep
        self.floor[rows] = np.where((live > 0) & ~deep, low, np.inf)

    def wait(self, query, item):
        """Sets pairs aside for float64, and decides those that wait when they are many."""
        if not len(query):
            return
        with self.lock:
            self.waiting.append((query, item))
            self.num_waiting += len(query)
            if self.num_waiting <= PENDING:
                return
            taken = self.taken()
        self.decide(None, *taken)

    def taken(self):
        pairs = [np.concatenate(parts) for parts in zip(*self.waiting, strict=True)]
        self.waiting, self.num_waiting = [], 0
        return pairs or (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def decide(self, pool, query, item):
        """Counts pairs by their float64 scores; tells ties."""
        p, order = self.p, self.order
        score = _scores(pool or _Inline, self.queries, self.catalogue, query, item)
        # Where the item stands among its query's relevant ones: the first that is behind it.
        low, high = self.first[query].copy(), p.start[query + 1].copy()
        while (open_ := low < high).any():
            middle = np.where(open_, (low + high) // 2, self.first[query])
            equal = score == p.score[middle]
            stands = (score > p.score[middle]) | (equal & (order[item] < order[p.item[middle]]))
            high = np.where(open_ & stands, middle, high)
            low = np.where(open_ & ~stands, middle + 1, low)
        tied = score == p.score[self.first[query]]
        smaller = tied & (order[item] < order[p.item[self.first[query]]])
        with self.lock:
            np.add.at(p.above, low[low < p.start[query + 1]], 1)
            np.add.at(self.tied, query[tied], 1)
            np.add.at(self.before, query[smaller], 1)
            self.decided[query] = True


class _Inline:
    """Stands in for a pool within one of its own threads."""

    map = staticmethod(map)


def _joined(groups):
    """Arrays of one kind joined: [(a, b), (c, d)] -> [a + c, b + d]."""
    return [np.concatenate(parts) for parts in zip(*groups, strict=True)]


def _cumulative(values, count):
    """Running sum within consecutive groups of `count` values."""
    total = np.cumsum(values)
    begin = np.cumsum(count) - count
    return total - np.repeat(total[begin] - values[begin], count) if len(values) else total


def _by_tile(positives, own):
    """(query, item) rows not to be counted: a list by tile of queries, each ordered by item."""
    itself = np.flatnonzero(own >= 0)
    query = np.concatenate([positives.query, itself])
    item = np.concatenate([positives.item, own[itself]])
    tile = query // TILE
    by = np.lexsort((item, tile))
    cuts = np.searchsorted(tile[by], np.arange(1, -(-len(own) // TILE)))
    return list(zip(np.split(query[by], cuts), np.split(item[by], cuts), strict=True))


def where(mask):
    """np.nonzero of a matrix, found faster."""
    return np.divmod(np.flatnonzero(mask), max(1, mask.shape[1]))
