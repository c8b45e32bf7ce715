"""Exact ranks of relevant items by counting, without sorting the catalogue.

The rank of a relevant item is one plus the number of items that stand before it. Those are counted
while blocks of the score matrix pass by, so that neither the matrix nor a list of neighbours is
ever held. Scores come from a float32 matrix product, whose error is bounded (see `_tolerance`):
an item whose score lies within the bound of a relevant item's is set aside and re-decided by the
float64 dot product. The result equals a float64 evaluation on every query, ties included.

Only ranks that can matter are followed. For MAP@R and precision@k an item ranked behind
max(R, k) contributes nothing, so that its threshold is dropped as soon as enough items are seen
above it; the best relevant item is followed to the end, or up to `depth`.

Where the queries are the catalogue, each pair of blocks is multiplied once and counted twice: along
its rows for one block's queries, along its columns for the other's.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

SUPER = 16384  # rows prepared at a time
TILE = 1024  # rows and columns of one matrix product
DEEP = 256  # items before the first relevant one from which on they are only counted
UNIT = 2e-6  # a length this near to 1 is float32's rounding

SIMILARITIES = ("cosine", "dot", "euclidean")


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


def pair_scores(queries, items):
    """Dot product of rows, float64 [n]: the score that decides.

    The rows are converted first: einsum's own conversion works through a buffer whose boundary
    would fall at another place in every row, and equal rows could then differ by rounding.
    """
    return np.einsum("ij,ij->i", queries.astype(np.float64), items.astype(np.float64))


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
):
    """Positives of every query with the items that stand before each of them counted.

    queries, catalogue: `Vectors`, the same object where the sets are the same. Labels: codes [Q]
    and [N]. own [Q]: the query's own row in the catalogue, or -1. order [N]: ranks that break ties.
    limit [Q]: ranks beyond it need not be told apart, except the first's. depth: the first's
    rank need not be followed beyond it, None for to the end. threads: None for all cores.

    Returns (Positives, tied [Q]: other items that score as the best positive, tied_relevant [Q]:
    positives that do, before [Q]: those of `tied` with a smaller id, decided [Q]: whether float64
    was needed).
    """
    query, item = relevant_pairs(query_labels, catalogue_labels, own)
    positives = _sorted_positives(
        queries, catalogue, query, item, order, len(query_labels), threads
    )
    counting = _Counting(queries, catalogue, positives, own, limit, depth, threads)
    counting.run()
    tied, before, decided = counting.decide(order)
    best = positives.score[positives.start[positives.query]]
    tied_relevant = np.bincount(
        positives.query, positives.score == best, minlength=len(query_labels)
    )
    return positives, tied, tied_relevant.astype(np.int64), before, decided


def _sorted_positives(queries, catalogue, query, item, order, count, threads):
    score = np.empty(len(query))

    def part(i):
        rows = slice(i, i + 8192)
        score[rows] = pair_scores(queries.left(query[rows]), catalogue.right(item[rows]))

    with ThreadPoolExecutor(threads or cores()) as pool:
        list(pool.map(part, range(0, len(query), 8192)))
    by = np.lexsort((order[item], -score, query))
    query, item, score = query[by], item[by], score[by]
    start = np.searchsorted(query, np.arange(count + 1))
    position = np.arange(len(query)) - start[query] + 1
    return Positives(start, query, item, score, position, np.zeros(len(query), np.int64))


def cores():
    return len(os.sched_getaffinity(0))


class _Counting:
    """The pass over the blocks. Shared arrays are changed under the lock only."""

    def __init__(self, queries, catalogue, positives, own, limit, depth, threads):
        self.queries, self.catalogue, self.p = queries, catalogue, positives
        self.symmetric = queries is catalogue
        self.depth = np.inf if depth is None else depth
        self.limit = limit
        self.threads = threads or cores()
        self.lock = threading.Lock()
        self.local = threading.local()
        self.near = []
        p = positives
        self.first = p.start[:-1]
        tolerance = _tolerance(queries, catalogue)
        # Queries follow each other on one axis, so that one sorted array serves them all.
        self.span = 4 * (queries.norms.max(initial=0) * catalogue.norms.max(initial=0) + 1)
        tolerance += self.span * len(queries) * 2.0**-51
        self.key = p.query * self.span - p.score
        best = np.full(len(self.first), np.inf)
        answerable = np.flatnonzero(p.counts)
        best[answerable] = p.score[self.first[answerable]]
        self.low = (best - tolerance).astype(np.float32)
        self.high = (best + tolerance).astype(np.float32)
        self.tolerance = tolerance
        self.floor = np.full(len(best), np.inf, np.float32)
        self.deep = np.zeros(len(best), bool)
        self.refresh(answerable)
        self.masked = _by_block(p, own)

    def run(self):
        from threadpoolctl import threadpool_limits

        n, m = len(self.queries), len(self.catalogue)
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(self.threads) as pool:
            for i in range(0, n, SUPER):
                a = self.queries.left(slice(i, i + SUPER))
                for j in range(i if self.symmetric else 0, m, SUPER):
                    same = self.symmetric and i == j
                    b = self.catalogue.right(slice(j, j + SUPER))
                    for _ in pool.map(lambda at: self.block(*at), self.tiles(a, b, i, j, same)):
                        pass

    def tiles(self, a, b, i, j, same):
        for y in range(0, len(a), TILE):
            for x in range(y if same else 0, len(b), TILE):
                yield a[y : y + TILE], b[x : x + TILE], i + y, j + x

    def block(self, a, b, i, j):
        if not hasattr(self.local, "buffer"):
            self.local.buffer = np.empty(TILE * TILE, np.float32)
        s = self.local.buffer[: len(a) * len(b)].reshape(len(a), len(b))
        np.matmul(a, b.T, out=s)
        self.mask(s, i, j)
        self.count(s, i, j)
        if self.symmetric and i != j:
            self.mask(s.T, j, i)
            self.count(s.T, j, i)

    def mask(self, s, i, j):
        """Takes relevant pairs and the query itself out of a block of scores."""
        query, item = self.masked[i // TILE]
        low, high = np.searchsorted(item, [j, j + s.shape[1]])
        s[query[low:high] - i, item[low:high] - j] = -np.inf

    def count(self, s, i, j):
        """Counts a block of scores: queries from row i on by items from row j on."""
        rows = slice(i, i + s.shape[0])
        with self.lock:  # floor and deep change together, also while this block is counted
            floor, deep = self.floor[rows].copy(), np.flatnonzero(self.deep[rows])
        above = where(s >= floor[:, None])
        if len(above[0]):
            self.place(i + above[0], j + above[1], s[above])
        if len(deep):
            self.count_deep(s[deep], i + deep, j)

    def place(self, query, item, score):
        """Counts items that stand above some threshold of their query's, each where it stands."""
        low, high = query.min(), query.max()
        offset, last = self.p.start[low], self.p.start[high + 1]
        keys = self.key[offset:last]
        key = query * self.span - score
        at = np.searchsorted(keys, key)
        gap = np.minimum(
            key - keys[np.maximum(at - 1, 0)], keys[np.minimum(at, len(keys) - 1)] - key,
            where=(at > 0) & (at < len(keys)), out=np.zeros(len(key)),
        )  # fmt: skip
        near = gap <= self.tolerance[query]
        first = end = at[:0]
        if near.any():
            tolerance = self.tolerance[query[near]]
            first = np.searchsorted(keys, key[near] - tolerance) + offset
            end = np.searchsorted(keys, key[near] + tolerance, "right") + offset
            first = np.maximum(first, self.first[query[near]])
            end = np.minimum(end, self.p.start[query[near] + 1])
            waiting = (query[near], item[near], first, end)
        sure = at[~near] + offset
        sure = sure[sure < self.p.start[query[~near] + 1]]
        with self.lock:
            np.add.at(self.p.above, sure, 1)
            if near.any():
                self.near.append(waiting)
            self.refresh(np.flatnonzero(np.bincount(query - low)) + low)

    def count_deep(self, h, query, columns):
        """Counts for queries whose first relevant item has many items before it."""
        above = np.count_nonzero(h > self.high[query, None], axis=1)
        maybe = np.count_nonzero(h >= self.low[query, None], axis=1)
        unsure = np.flatnonzero(maybe > above)
        with self.lock:
            self.p.above[self.first[query]] += above
            if self.depth < np.inf:
                self.refresh(query)
            if len(unsure):
                h, query = h[unsure], query[unsure]
                r, c = np.nonzero((h >= self.low[query, None]) & (h <= self.high[query, None]))
                first = self.first[query[r]]
                self.near.append((query[r], columns + c, first, first + 1))

    def refresh(self, rows):
        """Drops the thresholds of these queries that can no longer matter."""
        if not len(rows):
            return
        start = self.first[rows]
        count = self.p.start[rows + 1] - start
        pairs = _ranges(start, count)
        # Ranks rise with the position, so that those that matter come first.
        rank = self.p.position[pairs] + _cumulative(self.p.above[pairs], count)
        alive = rank <= np.repeat(self.limit[rows], count)
        begin = np.cumsum(count) - count
        alive[begin] = rank[begin] <= self.depth
        live = np.add.reduceat(alive, begin, dtype=np.int64)
        low = self.p.score[start + np.maximum(live, 1) - 1] - self.tolerance[rows]
        deep = (live == 1) & (rank[begin] > DEEP)
        self.deep[rows] = deep
        self.floor[rows] = np.where((live > 0) & ~deep, low, np.inf)

    def decide(self, order):
        """Re-decides by float64 what float32 could not; returns ties and the queries concerned."""
        p, count = self.p, len(self.first)
        ties, before = np.zeros(count, np.int64), np.zeros(count, np.int64)
        decided = np.zeros(count, bool)
        if not self.near:
            return ties, before, decided
        q, item, place, end = (np.concatenate(parts) for parts in zip(*self.near, strict=True))
        end = np.minimum(end, p.start[q + 1])
        score = np.empty(len(q))

        def part(i):
            rows = slice(i, i + 8192)
            a, b = self.queries.left(q[rows]), self.catalogue.right(item[rows])
            score[rows] = pair_scores(a, b)

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(part, range(0, len(q), 8192)))
        open_ = place < end
        while open_.any():
            at = np.where(open_, place, 0)
            equal = score == p.score[at]
            stands = (score > p.score[at]) | (equal & (order[item] < order[p.item[at]]))
            open_ &= ~stands
            place[open_] += 1
            open_ &= place < end
        # An item that stands before none of its near ones stands before the pair behind them.
        np.add.at(p.above, place[place < p.start[q + 1]], 1)
        tied = score == p.score[self.first[q]]
        np.add.at(ties, q[tied], 1)
        smaller = tied & (order[item] < order[p.item[self.first[q]]])
        np.add.at(before, q[smaller], 1)
        decided[q] = True
        return ties, before, decided


def _cumulative(values, count):
    """Running sum within consecutive groups of `count` values."""
    total = np.cumsum(values)
    begin = np.cumsum(count) - count
    return total - np.repeat(total[begin] - values[begin], count) if len(values) else total


def _by_block(positives, own):
    """(query, item) rows not to be counted: a list by block of queries, each ordered by item."""
    itself = np.flatnonzero(own >= 0)
    query = np.concatenate([positives.query, itself])
    item = np.concatenate([positives.item, own[itself]])
    block = query // TILE
    by = np.lexsort((item, block))
    cuts = np.searchsorted(block[by], np.arange(1, -(-len(own) // TILE)))
    return list(zip(np.split(query[by], cuts), np.split(item[by], cuts), strict=True))


def where(mask):
    """np.nonzero of a matrix, which is much quicker along the layout it has in memory."""
    if mask.flags.f_contiguous and not mask.flags.c_contiguous:
        return where(mask.T)[::-1]
    return np.divmod(np.flatnonzero(mask), max(1, mask.shape[1]))


def _tolerance(queries, catalogue):
    """Bound [Q] on the error of a float32 score and of its threshold.

    However a sum of D float32 products is ordered, fused or not, its error is at most
    D u / (1 - D u) |q| |c| with u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, section 3.1, with the Cauchy-Schwarz inequality). Four more u cover the rounding of the
    thresholds.
    """
    u = 2.0**-24
    bound = queries.dimensions * u / (1 - queries.dimensions * u) + 4 * u
    return bound * queries.norms * catalogue.norms.max(initial=0) + 1e-30


class Vectors:
    """Embeddings [N, D], made ready block by block so that a dot product is their similarity.

    cosine: rows of unit length; those that are so already, to float32 rounding, are taken as they
    are. dot: as they are. euclidean: -|q - c|²/2 = q·c - |q|²/2 - |c|²/2, where six more columns
    carry the last two terms: float64 numbers as sums of three float32.

    Everything is scaled by a power of two, which is exact, so that large values stay in range.
    `norms` [N] are those of the rows as multiplied.
    """

    def __init__(self, values, similarity, name="embeddings"):
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r} is not one of {', '.join(SIMILARITIES)}")
        if values.ndim != 2:
            raise ValueError(f"{name} must be [rows, dimensions], not {list(values.shape)}")
        self.values, self.similarity = values, similarity
        self.dimensions = values.shape[1] + 6 * (similarity == "euclidean")
        self.lengths = np.empty(len(values))
        for i in range(0, len(values), SUPER):
            part = np.asarray(values[i : i + SUPER], np.float64)
            self.lengths[i : i + SUPER] = np.sqrt(np.einsum("ij,ij->i", part, part))
        bad = np.flatnonzero(~np.isfinite(self.lengths))
        if len(bad):
            raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} such rows)")
        zero = np.flatnonzero(self.lengths == 0)
        if similarity == "cosine" and len(zero):
            raise ValueError(
                f"{name}: row {zero[0]} is all zeros and has no direction ({len(zero)} such rows); "
                "the cosine needs one, the similarities dot and euclidean do not"
            )
        self.rescale(np.ceil(np.log2(self.lengths.max(initial=0) or 1)))

    def rescale(self, exponent):
        """Divides all values by 2**exponent; sets that are multiplied must agree on it."""
        self.exponent = exponent
        lengths = np.ldexp(self.lengths, -int(exponent))
        if self.similarity == "cosine":
            self.norms = np.full(len(self), 1 + 1e-6)
        elif self.similarity == "dot":
            self.norms = lengths
        else:
            self.norms = np.sqrt(lengths**2 + lengths**4 / 4 + 3) * (1 + 1e-6)

    def __len__(self):
        return len(self.values)

    def left(self, rows):
        """Float32 rows (a slice or an array of them) to multiply as queries."""
        return self._ready(rows, False)

    def right(self, rows):
        """The same as catalogue items."""
        return self._ready(rows, True)

    def _ready(self, rows, right):
        values = self.values[rows]
        if self.similarity == "cosine":
            lengths = self.lengths[rows, None]
            if (np.abs(lengths - 1) <= UNIT).all():
                return np.ascontiguousarray(values, np.float32)
            lengths = np.where(np.abs(lengths - 1) <= UNIT, 1, lengths)
            return (values / lengths).astype(np.float32)
        if self.exponent:
            values = np.ldexp(values, -int(self.exponent))
        values = np.ascontiguousarray(values, np.float32)
        if self.similarity == "dot":
            return values
        rest = pair_scores(values, values) / -2
        parts = []
        for _ in range(3):
            parts.append(rest.astype(np.float32))
            rest = rest - parts[-1]
        parts = np.stack(parts, 1)
        ones = np.ones_like(parts)
        return np.hstack([values, ones, parts] if right else [values, parts, ones])
