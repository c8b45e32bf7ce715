"""Filters: block products of scores with bounded error, in float32, bfloat16 and int8.

A filter multiplies a tile of queries by a tile of items and bounds, for each query, how far any of
its scores may be from the exact dot product q·c of the prepared rows (see
`retrieval.ranking.vectors`). Counting trusts a score only beyond that bound (see
`retrieval.ranking.counting`), so the ranks do not depend on the filter.

The bound. Let fl(q), fl(c) be the rows as multiplied, and s the computed sum of D products.

    |s - q·c| <= |s - fl(q)·fl(c)| + |fl(q)·fl(c) - q·c|

1. Accumulation. However a sum of D float32 products is ordered, fused or not, each addition
   rounded by a relative u, its error is at most g |fl(q)| |fl(c)| with g = D u / (1 - D u)
   (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1, with the
   Cauchy-Schwarz inequality). In float32, u = 2**-24. A product of two bfloat16 numbers has 16
   significant bits and is exact in float32; their sums are float32, which some processors round to
   odd instead of to nearest: u = 2**-23 covers both.

2. Inputs. Writing fl(q) = q + dq, fl(c) = c + dc,

       |fl(q)·fl(c) - q·c| = |dq·c + fl(q)·dc| <= |dq| |c| + (|q| + |dq|) |dc|.

   In float32, |dq| <= u |q| and |dc| <= u |c|: together less than 3 u |q| |c|. In bfloat16, the
   further |dq| and |dc| are not estimated but measured, in float64, on every row. Rounding to
   nearest would bound them by 2**-8 of the row's length; on data they are about 2**-9.2 of it.

3. Numbers below 2**-126 may count as zero in bfloat16 units. Rows are scaled to lengths of at most
   about 1, so this changes a sum by less than 3 D 2**-126. The term 1e-30 covers that and
   float32's own underflow.

Four more u cover the rounding of the thresholds that scores are compared with. What float64 itself
may err in both is `exact.largest_error`, which counting adds.

In int8, rows are rounded to multiples of one step. Their products are exact int32 numbers of the
unit step**2, so only the second part of the bound is left, again measured on every row. It is about
four times bfloat16's: `auto` takes int8 where few scores are that close to a threshold.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

FILTERS = ("auto", "float32", "bfloat16", "int8")
WORTH = 2**33  # multiplications below which a filter would gain less than its import takes
PANEL = 64  # items multiplied at a time by numkong: few enough for their rows to stay in the cache
FEW = 1 / 256  # share of inconclusive scores up to which int8 is faster than bfloat16
DIMENSIONS = 2**17  # products of so many int8 numbers up to 127 fit in int32


def choose(name, queries, catalogue, threads, inconclusive):
    """The filter for two `Vectors`.

    Args:
      name: one of FILTERS; 'auto' takes the fastest one of this processor if there is enough work.
      queries, catalogue: `Vectors`. threads: int.
      inconclusive: function (bound [Q]) -> share of scores that a filter of this bound could not
        decide, roughly.

    Raises:
      ValueError: for another name, and for more dimensions than int8 can add.
    """
    if name not in FILTERS:
        raise ValueError(f"filter={name!r} is not one of {', '.join(FILTERS)}")
    narrow = queries.dimensions <= DIMENSIONS
    if name == "int8" and not narrow:
        raise ValueError(f"filter='int8' takes at most {DIMENSIONS:,} dimensions")
    large = name == "auto" and len(queries) * len(catalogue) * queries.dimensions >= WORTH
    # The columns that hold squared lengths would set the step.
    if name == "int8" or (large and narrow and not queries.squared and _has("icelake")):
        product = Int8(queries, catalogue, threads)
        if name == "int8" or inconclusive(product.bound) <= FEW:
            return product
    if name == "bfloat16" or (large and bfloat16_is_faster()):
        return Bfloat16(queries, catalogue, threads)
    return Float32(queries, catalogue)


def bfloat16_is_faster() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32.

    Those with AMX do, and AMD's with AVX512-BF16. Intel's with that (they have AVX512-FP16, which
    "sapphire" means) but without AMX take twice the time of float32.
    """
    return _has("sapphireamx") or (_has("genoa") and not _has("sapphire"))


def _has(capability):
    import numkong

    return numkong.get_capabilities().get(capability, False)


def accumulation(dimensions, u):
    """Relative error of a sum of products, relative to the product of the lengths."""
    return dimensions * u / (1 - dimensions * u)


def float32_bound(queries, catalogue):
    """Bound [Q] on the error of a float32 score and of its threshold."""
    u = 2.0**-24
    share = accumulation(queries.dimensions, u) + 8 * u
    return share * queries.norms * catalogue.norms.max(initial=0) + 1e-30


class _Filter:
    """What counting needs of a filter, besides `bound` [Q].

    Attributes:
      name: one of FILTERS. dtype: of the scores that `multiply` returns. unit: what they count in.
    """

    dtype, unit = np.float32, 1.0

    def at_most(self, score):
        """Thresholds float64 [n] as scores that are compared with; int8 rounds them down."""
        return score.astype(np.float32)

    def at_least(self, score):
        """The same; int8 rounds them up."""
        return score.astype(np.float32)


class Float32(_Filter):
    """Scores as NumPy multiplies them."""

    name = "float32"

    def __init__(self, queries, catalogue):
        self.bound = float32_bound(queries, catalogue)

    def left(self, rows):
        return rows

    def right(self, rows):
        return rows

    def multiply(self, a, b, local):
        """Scores [panels, rows, items per panel] of two tiles, in memory that `local` keeps."""
        out = _memory(local, (1, len(a), len(b)), np.float32)
        np.matmul(a, b.T, out=out[0])
        return out


class _Packed(_Filter):
    """Products by numkong of rows in a narrower format, which `narrow` and `back` convert."""

    def __init__(self, queries, catalogue, threads):
        import numkong

        self.numkong = numkong
        self.prepare(queries, catalogue)
        with ThreadPoolExecutor(threads) as pool:
            q = self.rounding(pool, queries, queries.left)
            c = q
            if queries is not catalogue or queries.similarity == "euclidean":
                c = self.rounding(pool, catalogue, catalogue.right)
            if queries is catalogue:  # a product then serves either row as the query
                q = c = np.maximum(q, c)
        longest, coarsest = catalogue.norms.max(initial=0), c.max(initial=0)
        rounded = queries.norms + q
        self.bound = (
            q * longest
            + rounded * coarsest
            + accumulation(queries.dimensions, self.u) * rounded * (longest + coarsest)
            + 8 * 2.0**-24 * queries.norms * longest
            + 1e-30
        )

    def prepare(self, queries, catalogue):
        """Whatever `left` and `back` need to know of all rows."""

    def rounding(self, pool, vectors, ready):
        """Length [N] of what rounding takes from each row."""

        def part(rows):
            exact = ready(rows)
            lost = exact - self.back(self.left(exact))  # close numbers: without rounding
            return np.sqrt(np.einsum("ij,ij->i", lost, lost, dtype=np.float64))

        return np.concatenate([np.zeros(0), *pool.map(part, vectors.chunks())]) * (1 + 1e-9)

    def right(self, rows):
        short = -len(rows) % PANEL
        if short:
            rows = np.concatenate([rows, np.zeros((short, rows.shape[1]), np.float32)])
        panels = [self.left(rows[i : i + PANEL]) for i in range(0, len(rows), PANEL)]
        return len(rows) - short, [self.numkong.dots_pack(p, dtype=self.name) for p in panels]

    def multiply(self, a, b, local):
        """Scores [panels, rows, PANEL] of two tiles, as above; very low beyond the last item."""
        count, panels = b
        out = _memory(local, (len(panels), a.shape[0], PANEL), self.dtype)
        if getattr(local, "shown", None) is not out:
            local.shown = out
            local.views = [
                self.numkong.from_pointer(part.ctypes.data, part.shape, out.dtype.name, owner=part)
                for part in out
            ]
        for panel, view in zip(panels, local.views, strict=True):
            self.numkong.dots_packed(a, panel, out=view)
        if count % PANEL:
            out[-1, :, count % PANEL :] = lowest(out.dtype)
        return out


class Bfloat16(_Packed):
    """Scores of rows rounded to bfloat16, summed in float32."""

    name, u = "bfloat16", 2.0**-23

    def left(self, rows):
        return self.numkong.astype(np.ascontiguousarray(rows), "bfloat16")

    def back(self, rows):
        return np.asarray(self.numkong.astype(rows, "float32"))


class Int8(_Packed):
    """Scores of rows rounded to multiples of one step, summed exactly."""

    name, u, dtype = "int8", 0.0, np.int32

    def prepare(self, queries, catalogue):
        largest = max(side.largest() for side in {id(s): s for s in (queries, catalogue)}.values())
        self.step = np.float32(max(largest, 1e-30) / 127)
        self.unit = float(self.step) ** 2

    def left(self, rows):
        whole = rows / self.step
        return np.clip(np.rint(whole, out=whole), -127, 127, out=whole).astype(np.int8)

    def back(self, rows):
        return rows * np.float64(self.step)

    def at_most(self, score):
        return self._whole(np.floor(score / self.unit))

    def at_least(self, score):
        return self._whole(np.ceil(score / self.unit))

    def _whole(self, score):
        return np.clip(score, -(2.0**31) + 1, 2.0**31 - 1).astype(np.int32)


def lowest(dtype):
    """What marks a score that does not count."""
    return -np.inf if dtype == np.float32 else np.iinfo(dtype).min


def _memory(local, shape, dtype):
    """An array of that shape, the last one again if it fits."""
    if getattr(local, "scores", None) is None or local.scores.shape != shape:
        local.scores = np.empty(shape, dtype)
    return local.scores
