"""Embeddings made ready so that a dot product of two rows is their similarity."""

import numpy as np

SIMILARITIES = ("cosine", "dot", "euclidean")

UNIT = 2e-6  # a length this near to 1 is float32's rounding
CHUNK = 2**22  # numbers converted at a time


def pair_scores(queries, items):
    """Dot product of rows, float64 [n]: the score that decides.

    The rows are converted first: einsum's own conversion works through a buffer whose boundary
    would fall at another place in every row, and equal rows could then differ by rounding.
    """
    return np.einsum("ij,ij->i", queries.astype(np.float64), items.astype(np.float64))


class Vectors:
    """Embeddings [N, D], made ready block by block so that a dot product is their similarity.

    cosine: rows of unit length; those that are so already, to float32 rounding, are taken as they
    are. dot: as they are. euclidean: -|q - c|²/2 = q·c - |q|²/2 - |c|²/2, where six more columns
    carry the last two terms: float64 numbers as sums of three float32.

    Everything is scaled by a power of two, which is exact, so that large values stay in range.
    `norms` [N] are those of the rows as multiplied, `dimensions` their number of columns.
    """

    def __init__(self, values, similarity, name="embeddings"):
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r} is not one of {', '.join(SIMILARITIES)}")
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"{name} must be [rows, dimensions], not {list(values.shape)}")
        self.values, self.similarity = values, similarity
        self.dimensions = values.shape[1] + 6 * (similarity == "euclidean")
        self.lengths = np.empty(len(values))
        for rows in self.chunks():
            part = np.asarray(values[rows], np.float64)
            self.lengths[rows] = np.sqrt(np.einsum("ij,ij->i", part, part))
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

    def chunks(self):
        """Slices of rows, a few million numbers each."""
        step = max(1, CHUNK // max(1, self.dimensions))
        return [slice(i, i + step) for i in range(0, len(self), step)]

    def blocks(self):
        """Yields (first row, rows to multiply as catalogue items) of all of them."""
        step = max(1, min(16384, 4 * CHUNK // max(1, self.dimensions)))
        for i in range(0, len(self), step):
            yield i, self.right(slice(i, i + step))

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


def pair(queries, catalogue, similarity):
    """`Vectors` of two sets that are multiplied, one object where they are the same set."""
    left = Vectors(queries, similarity, "queries")
    if catalogue is queries:
        return left, left
    right = Vectors(catalogue, similarity, "catalogue")
    exponent = max(left.exponent, right.exponent)
    left.rescale(exponent)
    right.rescale(exponent)
    return left, right


def pair_similarity(a, b, similarity):
    """Similarity of pairs of rows, float64 [n]; for euclidean, their distance."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if similarity == "euclidean":
        return np.linalg.norm(a - b, axis=1)
    dot = np.einsum("ij,ij->i", a, b)
    if similarity == "dot":
        return dot
    return dot / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
