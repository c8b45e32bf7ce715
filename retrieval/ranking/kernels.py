"""Filters: block products of scores with bounded error, in float32 and in bfloat16.

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
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

FILTERS = ("auto", "float32", "bfloat16")
WORTH = 2**33  # multiplications below which a filter would gain less than its import takes
PANEL = 64  # items multiplied at a time in bfloat16: few enough for their rows to stay in the cache


def choose(name, queries, catalogue, threads):
    """The filter for two `Vectors`.

    Args:
      name: one of FILTERS; 'auto' takes bfloat16 if the processor has it and there is enough work.
      queries, catalogue: `Vectors`. threads: int.

    Raises:
      ValueError: for another name.
    """
    if name not in FILTERS:
        raise ValueError(f"filter={name!r} is not one of {', '.join(FILTERS)}")
    work = len(queries) * len(catalogue) * queries.dimensions
    if name == "bfloat16" or (name == "auto" and work >= WORTH and has_bfloat16()):
        return Bfloat16(queries, catalogue, threads)
    return Float32(queries, catalogue)


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (x86: AVX512-BF16)."""
    import numkong

    return numkong.get_capabilities().get("genoa", False)


def accumulation(dimensions, u):
    """Relative error of a sum of products, relative to the product of the lengths."""
    return dimensions * u / (1 - dimensions * u)


def float32_bound(queries, catalogue):
    """Bound [Q] on the error of a float32 score and of its threshold."""
    u = 2.0**-24
    share = accumulation(queries.dimensions, u) + 8 * u
    return share * queries.norms * catalogue.norms.max(initial=0) + 1e-30


class Float32:
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
        out = _memory(local, (1, len(a), len(b)))
        np.matmul(a, b.T, out=out[0])
        return out


class Bfloat16:
    """Scores of rows rounded to bfloat16, summed in float32."""

    name = "bfloat16"

    def __init__(self, queries, catalogue, threads):
        import numkong

        self.numkong = numkong
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
            + accumulation(queries.dimensions, 2.0**-23) * rounded * (longest + coarsest)
            + 8 * 2.0**-24 * queries.norms * longest
            + 1e-30
        )

    def rounding(self, pool, vectors, ready):
        """Length [N] of what rounding takes from each row."""

        def part(rows):
            exact = ready(rows)
            back = np.asarray(self.numkong.astype(self.left(exact), "float32"))
            lost = exact.astype(np.float64) - back
            return np.sqrt(np.einsum("ij,ij->i", lost, lost))

        return np.concatenate([np.zeros(0), *pool.map(part, vectors.chunks())]) * (1 + 1e-9)

    def left(self, rows):
        return self.numkong.astype(np.ascontiguousarray(rows), "bfloat16")

    def right(self, rows):
        short = -len(rows) % PANEL
        if short:
            rows = np.concatenate([rows, np.zeros((short, rows.shape[1]), np.float32)])
        panels = [self.left(rows[i : i + PANEL]) for i in range(0, len(rows), PANEL)]
        return len(rows) - short, [self.numkong.dots_pack(p, dtype="bfloat16") for p in panels]

    def multiply(self, a, b, local):
        """Scores [panels, rows, PANEL] of two tiles, as above; -inf beyond the last item."""
        count, panels = b
        out = _memory(local, (len(panels), a.shape[0], PANEL))
        if getattr(local, "shown", None) is not out:
            local.shown = out
            local.views = [
                self.numkong.from_pointer(part.ctypes.data, part.shape, "float32", owner=part)
                for part in out
            ]
        for panel, view in zip(panels, local.views, strict=True):
            self.numkong.dots_packed(a, panel, out=view)
        if count % PANEL:
            out[-1, :, count % PANEL :] = -np.inf
        return out


def _memory(local, shape):
    """A float32 array of that shape, the last one again if it fits."""
    if getattr(local, "scores", None) is None or local.scores.shape != shape:
        local.scores = np.empty(shape, np.float32)
    return local.scores
