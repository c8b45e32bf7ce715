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
SQUARE = 512  # block of the symmetric product
ROWS, COLUMNS = 256, 2048  # block of the general product
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
    positives that do, before [Q]: those of `tied` with a smaller id, the number of queries that
    needed float64).
    """
    query, item = relevant_pairs(query_labels, catalogue_labels, own)
    positives = _sorted_positives(queries, catalogue, query, item, order, len(query_labels))
    counting = _Counting(queries, catalogue, positives, own, limit, depth, threads)
    counting.run()
    tied, before, decided = counting.decide(order)
    best = positives.score[positives.start[positives.query]]
    tied_relevant = np.bincount(
        positives.query, positives.score == best, minlength=len(query_labels)
    )
    return positives, tied, tied_relevant.astype(np.int64), before, decided


def _sorted_positives(queries, catalogue, query, item, order, count):
    score = np.empty(len(query))

    def part(i):
        rows = slice(i, i + 8192)
        score[rows] = pair_scores(queries.left(query[rows]), catalogue.right(item[rows]))

    with ThreadPoolExecutor(cores()) as pool:
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
        self.has = p.start[1:] > self.first
        tolerance = _tolerance(queries, catalogue)
        # Queries follow each other on one axis, so that one sorted array serves them all.
        self.span = 4 * (queries.norms.max(initial=0) * catalogue.norms.max(initial=0) + 1)
        tolerance += self.span * len(queries) * 2.0**-51
        key = p.query * self.span - p.score
        self.sure = key - tolerance[p.query]
        self.maybe = key + tolerance[p.query]
        best = np.full(len(self.has), np.inf)
        best[self.has] = p.score[self.first[self.has]]
        self.low = (best - tolerance).astype(np.float32)
        self.high = (best + tolerance).astype(np.float32)
        self.tolerance = tolerance
        self.live = np.zeros(len(self.has), np.int64)
        self.floor = np.full(len(self.has), np.inf, np.float32)
        self.refresh(np.flatnonzero(self.has))
        self.masked = _Masked(p, own)

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
        height, width = (SQUARE, SQUARE) if self.symmetric else (ROWS, COLUMNS)
        for y in range(0, len(a), height):
            for x in range(y if same else 0, len(b), width):
                yield a[y : y + height], b[x : x + width], i + y, j + x

    def block(self, a, b, i, j):
        if not hasattr(self.local, "buffer"):
            self.local.buffer = np.empty(max(SQUARE * SQUARE, ROWS * COLUMNS), np.float32)
        s = self.local.buffer[: len(a) * len(b)].reshape(len(a), len(b))
        np.matmul(a, b.T, out=s)
        both = self.symmetric and i != j
        self.masked.apply(s, i, j)
        if both:
            self.masked.apply(s.T, j, i)
        self.count(s, i, j, 1)
        if both:
            self.count(s, j, i, 0)

    def count(self, s, base, columns, axis):
        """Counts one block for the queries that start at row `base`; items run along `axis`."""
        rows = slice(base, base + s.shape[1 - axis])
        hot = np.flatnonzero(s.max(axis) >= self.floor[rows])
        if not len(hot):
            return
        h = s[hot] if axis == 1 else np.ascontiguousarray(s[:, hot].T)
        hot += base
        several = self.live[hot] > 1
        if several.any():
            self.count_several(h[several], hot[several], columns)
            h, hot = h[~several], hot[~several]
        if len(hot):
            self.count_first(h, hot, columns)

    def count_first(self, h, hot, columns):
        above = np.count_nonzero(h > self.high[hot, None], axis=1)
        maybe = np.count_nonzero(h >= self.low[hot, None], axis=1)
        unsure = np.flatnonzero(maybe > above)
        first = self.first[hot]
        if len(unsure):
            u = h[unsure]
            r, c = np.nonzero(
                (u >= self.low[hot[unsure], None]) & (u <= self.high[hot[unsure], None])
            )
            q = hot[unsure[r]]
        with self.lock:
            self.p.above[first] += above
            if len(unsure):
                self.near.append((q, columns + c, self.first[q], self.first[q] + 1))
            if self.depth < np.inf:
                self.refresh(hot[above > 0])

    def count_several(self, h, hot, columns):
        r, c = np.nonzero(h >= self.floor[hot, None])
        q = hot[r]
        key = q * self.span - h[r, c]
        sure = np.searchsorted(self.sure, key, "right")
        maybe = np.searchsorted(self.maybe, key, "left")
        near = maybe < sure
        place = sure[~near]
        place = place[place < self.p.start[q[~near] + 1]]
        with self.lock:
            np.add.at(self.p.above, place, 1)
            if near.any():
                self.near.append((q[near], columns + c[near], maybe[near], sure[near]))
            self.refresh(hot)

    def refresh(self, rows):
        """Drops the thresholds of these queries that can no longer matter."""
        rows = rows[self.has[rows]]
        start, count = self.first[rows], self.p.start[rows + 1] - self.first[rows]
        pairs = _ranges(start, count)
        # Ranks rise with the position, so that those that matter come first.
        rank = self.p.position[pairs] + _cumulative(self.p.above[pairs], count)
        alive = rank <= np.repeat(self.limit[rows], count)
        begin = np.cumsum(count) - count
        alive[begin] = rank[begin] <= self.depth
        live = np.add.reduceat(alive, begin, dtype=np.int64) if len(rows) else begin
        self.live[rows] = live
        last = start + np.maximum(live, 1) - 1
        low = self.p.score[last] - self.tolerance[rows]
        self.floor[rows] = np.where(live > 0, low, np.inf)

    def decide(self, order):
        """Re-decides by float64 what float32 could not; returns ties and the queries concerned."""
        p, count = self.p, len(self.has)
        ties, before = np.zeros(count, np.int64), np.zeros(count, np.int64)
        if not self.near:
            return ties, before, 0
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
        return ties, before, len(np.unique(q))


def _cumulative(values, count):
    """Running sum within consecutive groups of `count` values."""
    total = np.cumsum(values)
    begin = np.cumsum(count) - count
    return total - np.repeat(total[begin] - values[begin], count) if len(values) else total


class _Masked:
    """Pairs that are not counted in a block: relevant ones and the query itself."""

    def __init__(self, positives, own):
        q = np.flatnonzero(own >= 0)
        query = np.concatenate([positives.query, q])
        item = np.concatenate([positives.item, own[q]])
        by = np.argsort(query, kind="stable")
        self.query, self.item = query[by], item[by]

    def apply(self, s, i, j):
        low, high = np.searchsorted(self.query, [i, i + s.shape[0]])
        item = self.item[low:high] - j
        inside = (item >= 0) & (item < s.shape[1])
        s[self.query[low:high][inside] - i, item[inside]] = -np.inf


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
