"""Exact ranks of relevant items by counting, without sorting the catalogue.

The rank of a relevant item is one plus the number of items ahead of it. They are counted tile by
tile of the score matrix, so neither the matrix nor a list of neighbors is ever held. Scores come
from a filter, a float32, bfloat16 or int8 matrix product whose error is bounded (see
`retrieval.ranking.kernels`). An item whose score lies within the bound of a relevant item's is set
aside: scored in float32 if a narrower one was inconclusive, in float64 if float32 is, too,
and in twice that precision if float64 is (see `retrieval.ranking.exact`). The ranks are those of
the exact similarities of the rows as given, ties included.

Only ranks that can matter are followed. For MAP@R and precision@k an item ranked behind
max(R, k) contributes nothing, so its threshold is dropped as soon as enough items are seen
above it; the best relevant item is followed to the end, or up to `Settings.depth`.

If the queries are the catalogue, each pair of tiles is multiplied once and counted twice: along
its rows for one tile's queries, along its columns for the other's.

If many items have equal rows, as in a collapsed embedding, each distinct row is multiplied once and
counts for all its items.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval import progress
from retrieval.ranking import exact, kernels
from retrieval.ranking.groups import cumulative, first_place, joined, ranges
from retrieval.ranking.relevant import Positives, columns_of, of_pairs, ordered, relevant_pairs

SUPER = 16384  # rows made ready at a time, fewer if they are very long
TILE = 1024  # rows and columns of one matrix product
DEEP = 256  # items before the first relevant one from which on they are only counted
PENDING = 2**20  # pairs that wait for float64 at a time
PART = 2**17  # numbers of either side in `_dots`
SAMPLE = (64, 2048)  # queries and columns from which `_inconclusive` estimates


@dataclass(frozen=True)
class Settings:
    """How to count. No field changes a result, except that `depth` limits what is known.

    Attributes:
      depth: the first relevant item's rank is not followed beyond it; None: to the end.
      threads: None for all cores.
      filter: one of `kernels.FILTERS`.
    """

    depth: int | None = None
    threads: int | None = None
    filter: str = "auto"


@dataclass
class Counted:
    """What `count_ranks` found.

    Attributes:
      positives: `Positives`.
      tied: int [Q], irrelevant items that score as the best positive does.
      tied_relevant: int [Q], positives that do.
      before: int [Q], those of `tied` with a smaller id.
      decided: bool [Q], whether float64 was needed.
      filter: name of the filter that ran.
    """

    positives: Positives
    tied: np.ndarray
    tied_relevant: np.ndarray
    before: np.ndarray
    decided: np.ndarray
    filter: str


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def count_ranks(
    queries, catalogue, query_labels, item_labels, excluded, order, limit, settings=None
) -> Counted:
    """Counts the items ahead of each query's relevant ones.

    Args:
      queries, catalogue: `Vectors`, as `vectors.pair` returns them.
      query_labels, item_labels: codes, int [Q] and [N].
      excluded: (query [E], item [E]), distinct pairs that are not ranked.
      order: int [N], a permutation that breaks ties: the smaller first.
      limit: int [Q], ranks beyond it need not be known, except the first relevant item's.
      settings: `Settings`.
    """
    settings = settings or Settings()
    threads = settings.threads or cores()
    query, item = relevant_pairs(query_labels, item_labels, excluded)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        columns = columns_of(queries, catalogue, order)
        positives = ordered(pool, queries, columns, query, item, order, len(query_labels))

        def inconclusive(bound):
            return _inconclusive(queries, columns, positives, limit, bound)

        product = kernels.choose(settings.filter, queries, columns.vectors, threads, inconclusive)
        depth = np.inf if settings.depth is None else settings.depth
        counting = _Counting(queries, columns, product, positives, excluded, order, limit, depth)
        counting.run(pool)
    tier = positives.tier
    best = tier == tier[positives.start[positives.query]]
    tied_relevant = np.bincount(positives.query, best, minlength=len(query_labels))
    return Counted(
        positives, counting.tied, tied_relevant.astype(np.int64), counting.before,
        counting.decided, product.name,
    )  # fmt: skip


def _span(queries, catalogue):
    """A number above all differences between two scores of one query."""
    return 4 * (queries.norms.max(initial=0) * catalogue.norms.max(initial=0) + 1)


def _inconclusive(queries, columns, positives, limit, bound):
    """Share of a sample of scores within `bound` [Q] of a threshold that seems to matter."""
    vectors, p = columns.vectors, positives
    asking, among = (
        np.unique(np.linspace(0, len(side) - 1, number).astype(int))
        for side, number in zip((queries, vectors), SAMPLE, strict=True)
    )
    place = np.full(len(vectors), -1)
    place[among] = np.arange(len(among))
    found = 0
    for query, scores in zip(asking, queries.left(asking) @ vectors.right(among).T, strict=True):
        pairs = slice(p.start[query], p.start[query + 1])
        itself = [query] if queries is vectors else columns.of[:0]
        own = place[np.append(columns.of[p.item[pairs]], itself)]
        scores[own[own >= 0]] = -np.inf
        scores.sort()
        threshold = p.score[pairs] + queries.offset
        ahead = len(scores) - np.searchsorted(scores, threshold)
        rank = ahead * (len(vectors) / len(among)) + np.arange(1, len(threshold) + 1)
        threshold = threshold[(rank <= limit[query]) | (np.arange(len(rank)) == 0)]
        ends = np.searchsorted(scores, [threshold - bound[query], threshold + bound[query]])
        found += (ends[1] - ends[0]).sum()
    return found / (len(asking) * len(among))


class _Counting:
    """The pass over the tiles. Shared arrays are changed under the lock only."""

    def __init__(self, queries, columns, product, positives, excluded, order, limit, depth):
        self.queries, self.columns, self.product = queries, columns, product
        self.positives, self.order, self.limit, self.depth = positives, order, limit, depth
        # Then a score serves either row as the query, if what is masked for one is for the other.
        self.symmetric = queries is columns.vectors and _mutual(*excluded, len(queries))
        self.lock = threading.Lock()
        self.local = threading.local()
        self.waiting, self.num_waiting = [], 0
        p, count = positives, len(queries)
        self.first = p.start[:-1]
        self.tied, self.before = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.decided = np.zeros(count, bool)
        # Queries follow each other on one axis, so that one sorted array serves them all.
        catalogue = columns.vectors
        self.span = _span(queries, catalogue)
        threshold = p.score + queries.offset
        self.key = p.query * self.span - threshold
        rounding = self.span * count * 2.0**-50 + 2 * exact.largest_error(queries, catalogue)
        self.bound = product.bound + rounding
        self.bound32 = kernels.float32_bound(queries, catalogue) + rounding
        best = np.full(count, np.inf)
        answerable = np.flatnonzero(p.counts)
        best[answerable] = threshold[self.first[answerable]]
        self.low, self.high = (
            product.at_most(best - self.bound),
            product.at_least(best + self.bound),
        )
        self.floor = product.at_most(np.full(count, np.inf))
        self.deep = np.zeros(count, bool)
        self.refresh(answerable)
        self._mask(excluded)

    def _mask(self, excluded):
        """Notes what is not to be counted: relevant items and excluded ones.

        Their (query, column) is masked in the tiles. The other items of a masked column, which
        has several if equal rows were merged, are set aside for `decide`.
        """
        p, columns = self.positives, self.columns
        query = np.concatenate([p.query, excluded[0]])
        item = np.concatenate([p.item, excluded[1]])
        column = columns.of[item]
        if columns.size is not None:
            pair = query * len(columns.vectors) + column
            self.masked_pairs, pair = np.unique(pair, return_inverse=True)
            # Masked items in the order of their pair and within it in that of ties.
            self.masked_items = np.sort(pair * len(columns.of) + self.order[item])
            query, column = np.divmod(self.masked_pairs, len(columns.vectors))
            rest = columns.size[column] > np.bincount(pair, minlength=len(query))
            rest &= p.counts[query] > 0
            self.waiting.append((query[rest], column[rest]))
        self.masked = _by_tile(query, column, len(self.queries))

    def run(self, pool):
        rows, columns = (-(-len(side) // TILE) for side in (self.queries, self.columns.vectors))
        tiles = rows * (rows + 1) // 2 if self.symmetric else rows * columns
        for _ in progress.track(self.products(pool), tiles, "exact ranks, tiles of scores"):
            pass
        self.decide(pool, *self.taken())

    def products(self, pool):
        """Goes through all tiles and yields as each is done."""
        queries, items = self.queries, self.columns.vectors
        step = max(TILE, min(SUPER, 2**24 // queries.dimensions) // TILE * TILE)
        for i in range(0, len(queries), step):
            end = min(i + step, len(queries))
            lefts = self.tiles(pool, queries.left, self.product.left, i, end)
            for j in range(i if self.symmetric else 0, len(items), step):
                end = min(j + step, len(items))
                rights = self.tiles(pool, items.right, self.product.right, j, end)
                same = self.symmetric and i == j
                pairs = ((a, b) for y, a in enumerate(lefts) for b in rights[y if same else 0 :])
                yield from pool.map(lambda pair: self.tile(*pair[0], *pair[1]), pairs)

    def tiles(self, pool, ready, prepare, start, end):
        """[(first row, float32 rows, the same as the filter multiplies them)] of rows in turn."""

        def part(i):
            rows = ready(slice(i, min(i + TILE, end)))
            return i, rows, prepare(rows)

        return list(pool.map(part, range(start, end, TILE)))

    def tile(self, top, left, left_ready, first, right, right_ready):
        """Counts one tile: rows from `top` on as queries, from `first` on as columns.

        left, right: float32 [rows, D] and [columns, D]; the same as the filter multiplies them.
        """
        # [panels, rows, columns per panel]
        scores = self.product.multiply(left_ready, right_ready, self.local)
        self.mask(scores, top, first, len(right))
        found = [self.along_rows(scores, top, first, len(left))]
        if self.symmetric and top != first:
            found.append(self.along_columns(scores, top, first, len(right)))
        *pairs, score = joined(above for above, _ in found)
        near = self.place(pairs[0], pairs[1], score, self.bound)
        self.refresh(pairs[0])
        # Thresholds that no longer matter, which are many in a query's first tile, decide nothing.
        lowest = np.minimum(self.floor, self.low)[pairs[0]] * self.product.unit
        near &= score >= lowest
        # What this product cannot decide, the next finer one does.
        query, column, y, x = joined(
            [[part[near] for part in pairs], *(unsure for _, unsure in found)]
        )
        if self.product.name != "float32" and len(query):
            if len(query) > scores.size // 64:  # as much work as the whole tile
                score = np.matmul(left, right.T)[y, x]
            else:
                score = _dots(left, y, right, x)
            near = self.place(query, column, score, self.bound32)
            query, column = query[near], column[near]
        self.wait(query, column)

    def mask(self, scores, top, first, columns):
        """Takes relevant and excluded items out of a tile of scores."""
        query, column = self.masked[top // TILE]
        low, high = np.searchsorted(column, [first, first + columns])
        panel, x = np.divmod(column[low:high] - first, scores.shape[2])
        scores[panel, query[low:high] - top, x] = kernels.lowest(scores.dtype)

    def along_rows(self, scores, top, first, rows):
        """What a tile [panels, rows, columns per panel] holds for the queries of its rows.

        Returns two tuples of arrays: (query, column, y, x, score) of the scores above some
        threshold; and (query, column, y, x) of what is inconclusive for the queries whose items are
        only counted, which is done here. y, x: row and column in the tile.
        """
        with self.lock:  # floor and deep change together, also while this tile is counted
            floor = self.floor[top : top + rows].copy()
            deep = np.flatnonzero(self.deep[top : top + rows])
        y, x, score = self.above(scores, floor[:, None])
        # [deep, columns]
        counted = scores[:, deep].transpose(1, 0, 2)
        counted = counted.reshape(len(deep), scores.shape[0] * scores.shape[2])
        deep_y, deep_x = self.count_deep(counted, top + deep, first)
        deep_y = deep[deep_y]
        return (top + y, first + x, y, x, score), (top + deep_y, first + deep_x, deep_y, deep_x)

    def along_columns(self, scores, top, first, columns):
        """The same for the queries of its columns."""
        panels, rows, wide = scores.shape
        floor = self.product.at_most(np.full(panels * wide, np.inf))
        with self.lock:
            floor[:columns] = self.floor[first : first + columns]
            deep = np.flatnonzero(self.deep[first : first + columns])
        y, x, score = self.above(scores, floor.reshape(panels, 1, wide))
        # [deep, rows]
        counted = scores[deep // wide, :, deep % wide]
        deep_x, deep_y = self.count_deep(counted, first + deep, top)
        deep_x = deep[deep_x]
        return (first + x, top + y, y, x, score), (first + deep_x, top + deep_y, deep_y, deep_x)

    def above(self, scores, floor):
        """(y, x, score) of the scores of a tile that reach the floor."""
        at = np.flatnonzero(scores >= floor)
        panel, rest = np.divmod(at, scores.shape[1] * scores.shape[2])
        y, x = np.divmod(rest, scores.shape[2])
        return y, panel * scores.shape[2] + x, scores.reshape(-1)[at] * self.product.unit

    def place(self, query, column, score, bound):
        """Counts what is above some threshold of its query, each where it belongs.

        Returns a mask of those within the bound of a threshold, which are not counted.
        """
        if not len(query):
            return np.zeros(0, bool)
        p = self.positives
        offset, last = p.start[query.min()], p.start[query.max() + 1]
        keys = self.key[offset:last]
        key = query * self.span - score
        at = np.searchsorted(keys, key)
        gap = np.minimum(
            key - keys[np.maximum(at - 1, 0)], keys[np.minimum(at, len(keys) - 1)] - key,
            where=(at > 0) & (at < len(keys)), out=np.zeros(len(key)),
        )  # fmt: skip
        near = gap <= bound[query]
        sure = at[~near] + offset
        inside = sure < p.start[query[~near] + 1]
        count = self.columns.sizes(column[~near][inside])
        with self.lock:
            np.add.at(p.above, sure[inside], count)
        return near

    def count_deep(self, scores, query, first):
        """Counts items for queries whose first relevant item has many items ahead of it.

        Args:
          scores: float32 [deep, columns], of columns from `first` on. query: int [deep].

        Returns:
          (row, column) of the scores that could be on either side of it.
        """
        if not len(query):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        higher = scores > self.high[query, None]
        above = maybe = np.count_nonzero(higher, axis=1)
        if self.columns.size is not None:
            size = self.columns.size[first : first + scores.shape[1]]
            above = higher[:, : len(size)] @ size
        unsure = np.count_nonzero(scores >= self.low[query, None], axis=1) > maybe
        with self.lock:
            self.positives.above[self.first[query]] += above
        if self.depth < np.inf:
            self.refresh(query)
        unsure = np.flatnonzero(unsure)
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
        p, start = self.positives, self.first[rows]
        count = p.start[rows + 1] - start
        pairs = ranges(start, count)
        begin = np.cumsum(count) - count
        # Ranks rise with the position, so those that matter come first.
        position = np.arange(len(pairs)) - np.repeat(begin, count) + 1
        rank = position + cumulative(p.above[pairs], count)
        alive = rank <= np.repeat(self.limit[rows], count)
        alive[begin] = rank[begin] <= self.depth
        live = np.add.reduceat(alive, begin, dtype=np.int64)
        lowest = p.score[start + np.maximum(live, 1) - 1] + self.queries.offset
        deep = (live == 1) & (rank[begin] > DEEP)
        self.deep[rows] = deep
        floor = np.where((live > 0) & ~deep, lowest - self.bound[rows], np.inf)
        self.floor[rows] = self.product.at_most(floor)

    def wait(self, query, column):
        """Sets pairs aside for float64, and decides those that wait if they are many."""
        if not len(query):
            return
        with self.lock:
            self.waiting.append((query, column))
            self.num_waiting += len(query)
            if self.num_waiting <= PENDING:
                return
            taken = self.taken()
        self.decide(_Inline, *taken)

    def taken(self):
        pairs = [np.concatenate(parts) for parts in zip(*self.waiting, strict=True)]
        self.waiting, self.num_waiting = [], 0
        return pairs or (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def decide(self, pool, query, column):
        """Counts (query, column) pairs [n] by their float64 scores, or if those are inconclusive by
        their keys; counts ties."""
        p = self.positives
        score, error = of_pairs(exact.scores, pool, self.queries, self.columns, query, column)
        error = error + p.error[query]
        end = p.start[query + 1]
        # Thresholds from `low` to `high` are too close to the score.
        low = first_place(self.first[query], end, lambda at: p.score[at] <= score + error)
        high = first_place(low, end, lambda at: p.score[at] < score - error)
        count = self.columns.sizes(column) - self.masked_below(query, column)
        inside = (low == high) & (low < end)
        with self.lock:
            np.add.at(p.above, low[inside], count[inside])
            self.decided[query] = True
        close = np.flatnonzero(low < high)
        if len(close):
            within = (each[close] for each in (query, column, count, low, high, end))
            self.decide_close(pool, *within)

    def decide_close(self, pool, query, column, count, low, high, end):
        """The same by keys, for `count` items per pair: against thresholds from low to high."""
        p = self.positives
        touched = np.unique(ranges(low, high - low))
        unknown = touched[np.isnan(p.high[touched])]
        keys = of_pairs(
            exact.keys, pool, self.queries, self.columns,
            np.append(p.query[unknown], query),
            np.append(self.columns.of[p.item[unknown]], column),
        )  # fmt: skip
        with self.lock:  # low first: a known high says that both are known
            p.low[unknown], p.high[unknown] = (each[: len(unknown)] for each in keys[::-1])
        key_high, key_low = (each[len(unknown) :] for each in keys)

        def behind(at):
            equal = p.high[at] == key_high
            return (p.high[at] < key_high) | (equal & (p.low[at] < key_low))

        def equal(at):
            return (p.high[at] == key_high) & (p.low[at] == key_low)

        # Thresholds from `low` to `high` now tie with the item.
        low = first_place(low, high, lambda at: behind(at) | equal(at))
        high = first_place(low, high, behind)
        ties = high > low
        first = self.first[query]
        best = ties & (low == first)
        smaller = self.smaller(query[best], column[best], self.order[p.item[first[best]]])
        order = self.columns.members[self.columns.start[column]] % len(self.columns.of)
        # One item: ahead of the first tied threshold of larger order.
        alone = ties & (self.columns.sizes(column) == 1)
        last = np.where(alone, high, low)
        at = first_place(low, last, lambda at: self.order[p.item[at]] > order)
        single = (alone | ~ties) & (at < end)
        with self.lock:
            np.add.at(p.above, at[single], count[single])
            np.add.at(self.tied, query[best], count[best])
            np.add.at(self.before, query[best], smaller)
        several = np.flatnonzero(ties & ~alone)
        if len(several):
            self.spread(*(each[several] for each in (query, column, count, low, high, end)))

    def spread(self, query, column, count, low, high, end):
        """Counts columns of several items that tie with thresholds from low to high."""
        number = high - low
        at, of = ranges(low, number), np.repeat(np.arange(len(low)), number)
        order = self.order[self.positives.item[at]]
        ahead = self.smaller(query[of], column[of], order)  # of each threshold
        first = np.cumsum(number) - number
        new = np.diff(ahead, prepend=0)
        new[first] = ahead[first]
        rest = count - ahead[first + number - 1]
        inside = high < end
        with self.lock:
            np.add.at(self.positives.above, at, new)
            np.add.at(self.positives.above, high[inside], rest[inside])

    def smaller(self, query, column, order):
        """Items to be counted of (query, column) pairs [n] whose order is below `order` [n]."""
        return self.columns.smaller(column, order) - self.masked_below(query, column, order)

    def masked_below(self, query, column, order=None):
        """Masked items of (query, column) pairs [n], of all orders or of those below `order`."""
        if self.columns.size is None or not len(self.masked_pairs):
            return np.zeros(len(query), np.int64)  # masked columns are not counted at all
        pairs, items = self.masked_pairs, len(self.columns.of)
        wanted = query * len(self.columns.vectors) + column
        at = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
        begin = np.searchsorted(self.masked_items, at * items)
        end = at * items + (items if order is None else order)
        return np.where(pairs[at] == wanted, np.searchsorted(self.masked_items, end) - begin, 0)


def _dots(left, y, right, x):
    """Float32 products of pairs of rows, a few at a time: they stay in the cache."""
    step = max(1, PART // left.shape[1])
    parts = range(0, len(y), step)
    found = [np.einsum("ij,ij->i", left[y[i : i + step]], right[x[i : i + step]]) for i in parts]
    return np.concatenate(found)


class _Inline:
    """Used in place of a pool within one of its own threads."""

    map = staticmethod(map)


def _mutual(query, item, count):
    """Whether (b, a) is among the pairs whenever (a, b) is."""
    return np.array_equal(np.sort(query * count + item), np.sort(item * count + query))


def _by_tile(query, column, count):
    """[(query, column)] of each tile of queries, ordered by column."""
    tile = query // TILE
    by = np.lexsort((column, tile))
    cuts = np.searchsorted(tile[by], np.arange(1, -(-count // TILE)))
    return list(zip(np.split(query[by], cuts), np.split(column[by], cuts), strict=True))
