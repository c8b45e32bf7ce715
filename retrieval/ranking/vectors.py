"""Embeddings prepared for ranking: checked, scaled, and in the form that a filter multiplies."""

import numpy as np

SIMILARITIES = ("cosine", "dot", "euclidean")

UNIT = 2e-6  # a length this near to 1 is float32's rounding
CHUNK = 2**18  # numbers converted at a time: few enough to stay in the cache
BLOCK = 2**24  # numbers that `blocks` yields at a time
SAMPLE = 256  # rows whose mean is the center
NEAR = 0.25  # rows this near to the center, relative to their length, are multiplied without it


class Vectors:
    """Embeddings [N, D] of one side of a search, prepared block by block.

    Three forms of a row are in use, all scaled by a power of two, which is exact:

    - `wide`: float64; of unit length for the cosine, otherwise as given.
    - `prepared`: `wide` less the center of the catalogue, where there is one.
    - `left` and `right`: float32, what a filter multiplies. Their dot product is the score:
      q·c for the dot product and the cosine; -|q - c|²/2 = q·c - |q|²/2 - |c|²/2 with a center,
      where six more columns hold the last two terms, each a float64 number as a sum of three
      float32.

    Removing a center changes no order (dot: q·c changes by q·b for all items of a query) but makes
    nearly equal rows easy to tell apart. Euclidean distances always use one; the cosine of rows
    that nearly point in one direction is ranked by the distance of their unit vectors.

    Attributes:
      values: the rows as given, float16, float32 or float64 [N, D].
      lengths: float64 [N], Euclidean lengths of the rows as given.
      norms: float64 [N], bounds on the lengths of the float32 rows.
      dimensions: the number of columns of the float32 rows.
      offset: added to `exact.scores`, it gives the filter's scores.
      has_few_digits: whether float64 scores of this pair of sides have no error (small integers,
        binary codes); set by `pair`.
      squares: float64 [2, N], high and low parts of squared lengths; NaN until `exact.keys` needs
        them.
    """

    def __init__(self, values, similarity, name="embeddings"):
        """Checks the rows.

        Raises:
          ValueError: for a wrong shape, for NaN and infinity, and for rows of zeros by cosine.
        """
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r} is not one of {', '.join(SIMILARITIES)}")
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"{name} must be [rows, dimensions], not {list(values.shape)}")
        if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
            raise ValueError(f"{name} must be real numbers of at most 64 bits, not {values.dtype}")
        self.values, self.similarity = values, similarity
        self.center, self.exponent, self.is_left = None, 0, True
        self.has_few_digits = False
        self.squares = np.full((2, len(values)), np.nan)
        self.lengths = self._lengths(lambda rows: np.asarray(values[rows], np.float64))
        bad = np.flatnonzero(~np.isfinite(self.lengths))
        if len(bad):
            raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} such rows)")
        zero = np.flatnonzero(self.lengths == 0)
        if similarity == "cosine" and len(zero):
            raise ValueError(
                f"{name}: row {zero[0]} is all zeros and has no direction ({len(zero)} such rows); "
                "the cosine needs one, the similarities dot and euclidean do not"
            )
        largest = 1.0 if similarity == "cosine" else self.lengths.max(initial=0)
        self._scale(None, largest, self.lengths)

    def _scale(self, center, largest, lengths, is_left=True):
        """Sets the center and the scale: rows whose length is `largest` get one of at most 1."""
        self.center, self.is_left = center, is_left
        self.exponent = int(np.frexp(largest)[1])
        self.squared = self.similarity == "euclidean" or (
            self.similarity == "cosine" and center is not None
        )
        self.offset = 1.0 if self.similarity == "cosine" and center is None else 0.0
        self.dimensions = self.values.shape[1] + 6 * self.squared
        if self.similarity == "cosine" and center is None:
            lengths, self.exponent = np.ones(len(self)), 0
        norms = np.ldexp(lengths, -self.exponent)
        if self.squared:
            norms = np.sqrt(norms**2 + norms**4 / 4 + 3)
        self.norms = norms * (1 + 1e-6)

    def _lengths(self, form):
        """Lengths [N] of rows in a form, without overflow or underflow on the way."""
        lengths = np.empty(len(self.values))
        for rows in self.chunks():
            part = form(rows)
            with np.errstate(over="ignore", under="ignore"):
                lengths[rows] = np.sqrt(np.einsum("ij,ij->i", part, part))
            if self.values.dtype.itemsize == 8:
                beyond = np.flatnonzero(~((lengths[rows] > 1e-140) & (lengths[rows] < 1e140)))
                exponent = np.frexp(np.abs(part[beyond]).max(axis=1))[1]
                part = np.ldexp(part[beyond], -exponent[:, None])
                length = np.sqrt(np.einsum("ij,ij->i", part, part))
                lengths[rows][beyond] = np.ldexp(length, exponent)
        return lengths

    def __len__(self):
        return len(self.values)

    def largest(self):
        """The largest absolute element of the float32 rows."""
        found = [1.0 if self.squared else 0.0]
        for rows in self.chunks():
            if self.center is None:  # without a copy in float64
                ends = [end(self.values[rows], axis=1) for end in (np.min, np.max)]
                part = np.abs(np.array(ends, np.float64)).max(0)
                part = part / self.lengths[rows] if self.similarity == "cosine" else part
                found.append(_scaled(part, self.exponent).max(initial=0))
            else:
                found.append(np.abs(self.prepared(rows)).max(initial=0))
        return max(found)  # half a squared length is below 1

    def take(self, rows):
        """The same for some rows only, scaled and centered alike."""
        part = object.__new__(Vectors)
        part.__dict__ |= self.__dict__
        part.values, part.lengths = self.values[rows], self.lengths[rows]
        part.norms, part.squares = self.norms[rows], self.squares[:, rows].copy()
        return part

    def chunks(self):
        """Slices of rows, a few million numbers each."""
        step = max(1, CHUNK // max(1, self.values.shape[1]))
        return [slice(i, i + step) for i in range(0, len(self.values), step)]

    def blocks(self):
        """Yields (first row, rows to multiply as catalogue items) of all of them."""
        step = max(1, min(16384, BLOCK // max(1, self.dimensions)))
        for i in range(0, len(self), step):
            yield i, self.right(slice(i, i + step))

    def wide(self, rows):
        """Float64 rows, of unit length for the cosine; scaled."""
        values = self.values[rows]
        if self.similarity == "cosine":
            values = np.divide(values, self.lengths[rows, None], dtype=np.float64)
        return _scaled(np.asarray(values, np.float64), self.exponent)

    def prepared(self, rows):
        """The same less the center."""
        values = self.wide(rows)
        if self.center is None or (self.similarity == "dot" and self.is_left):
            return values
        return values - _scaled(self.center, self.exponent)

    def raw(self, rows):
        """Float64 rows, exactly those given but for a power of two per row. For the cosine."""
        exponent = np.frexp(self.lengths[rows])[1][:, None]
        return np.ldexp(np.asarray(self.values[rows], np.float64), -exponent)

    def left(self, rows):
        """Float32 rows (a slice or an array of them) to multiply as queries."""
        return self._ready(rows, False)

    def right(self, rows):
        """The same as catalogue items."""
        return self._ready(rows, True)

    def _ready(self, rows, right):
        values = self.prepared(rows)
        narrow = np.ascontiguousarray(values, np.float32)
        if not self.squared:
            return narrow
        rest = np.einsum("ij,ij->i", values, values) / -2
        parts = []
        for _ in range(3):
            parts.append(rest.astype(np.float32))
            rest = rest - parts[-1]
        parts = np.stack(parts, 1)
        ones = np.ones_like(parts)
        return np.hstack([narrow, ones, parts] if right else [narrow, parts, ones])


def pair(queries, catalogue, similarity):
    """`Vectors` of the two sides of a search, one object if they are the same array.

    Args:
      queries, catalogue: float [Q, D] and [N, D].
      similarity: one of SIMILARITIES.

    Returns:
      (left, right): two objects also for the same array if a center makes the sides differ.
    """
    left = Vectors(queries, similarity, "queries")
    right = left if queries is catalogue else Vectors(catalogue, similarity, "catalogue")
    left, right = _centered(left, right)
    if right.center is None or similarity == "euclidean":
        left.has_few_digits = right.has_few_digits = _few_digits([left, right])
    return left, right


def _centered(left, right):
    """The sides with a center, if that helps."""
    similarity = right.similarity
    some = right.wide(np.unique(np.linspace(0, len(right) - 1, SAMPLE).astype(int)))
    middle = some.mean(0)
    farthest = np.linalg.norm(some - middle, axis=1).max()
    center = np.ldexp(middle, right.exponent)
    if similarity == "dot":
        if farthest < NEAR * np.ldexp(right.lengths.max(), -right.exponent):
            if left is right:
                left = right.take(slice(None))
            lengths = right._lengths(lambda rows: _less(right, rows, center))
            right._scale(center, lengths.max(), lengths, is_left=False)
        return left, right
    if similarity == "cosine" and farthest > NEAR:
        return left, right
    sides = [right] if left is right else [left, right]
    lengths = [side._lengths(lambda rows, side=side: _less(side, rows, center)) for side in sides]
    largest = max(each.max() for each in lengths)
    if similarity == "euclidean" or largest <= NEAR:
        for side, each in zip(sides, lengths, strict=True):
            side._scale(center, largest, each)
    return left, right


def _few_digits(sides):
    """Whether `exact.scores` of these sides are exact: integers of few digits, in some unit.

    All values are multiples of 2**low below 2**high. Sums of D products, or of D squared
    differences, then have no more than 2 (high - low + 1) + log2(D) digits. For the cosine, let B
    be the largest squared length: two cosines that differ do so by at least 1 / (2 B**3).
    """
    dimensions = sides[0].values.shape[1]
    low, high = np.inf, -np.inf
    for side in sides:
        # First some rows, which mostly say no.
        for rows in (slice(0, None, max(1, len(side) // 16)), *side.chunks()):
            values = np.asarray(side.values[rows], np.float64)
            mantissa, exponent = np.frexp(np.abs(values[values != 0]))
            if not len(mantissa):
                continue
            whole = np.ldexp(mantissa, 53).astype(np.int64)
            lowest = exponent - 54 + np.frexp((whole & -whole).astype(np.float64))[1]
            low, high = min(low, lowest.min()), max(high, exponent.max())
            if 2 * (high - low + 1) + np.log2(dimensions) > 53:
                return False
    if sides[0].similarity == "cosine" and np.isfinite(low):
        longest = max(np.ldexp(side.lengths, -int(low)).max() for side in sides)
        return bool(longest**2 <= 2**16)
    return True


def _scaled(values, exponent):
    """Values divided by 2**exponent."""
    if not exponent:
        return values
    return values * 2.0**-exponent if abs(exponent) < 1000 else np.ldexp(values, -exponent)


def _less(side, rows, center):
    """Float64 rows less the center, unscaled."""
    return np.ldexp(side.wide(rows), side.exponent) - center


def equal_rows(values):
    """Groups of equal rows.

    Args:
      values: float [N, D].

    Returns:
      int [N], for each row the first row that equals it: itself if there is none before.
    """
    count = len(values)
    weights = np.random.default_rng(0).integers(0, 2**63, values.shape[1], np.uint64) * 2 + 1
    hashes = np.empty(count, np.uint64)
    step = max(1, CHUNK // max(1, values.shape[1]))
    for i in range(0, count, step):
        part = np.ascontiguousarray(values[i : i + step]) + values.dtype.type(0)  # no -0.0
        bits = part.view(f"u{part.itemsize}")
        hashes[i : i + step] = np.einsum("ij,j->i", bits.astype(np.uint64), weights)
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = first[group]
    for i in np.array_split(np.flatnonzero(first != np.arange(count)), count // step + 1):
        same = (values[i] == values[first[i]]).all(1)
        first[i[~same]] = i[~same]  # unequal rows of one hash: taken as distinct, which is safe
    return first


def pair_similarity(a, b, similarity):
    """Similarity of pairs of rows, float64 [n]; for euclidean, their distance."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if similarity == "euclidean":
        return np.linalg.norm(a - b, axis=1)
    dot = np.einsum("ij,ij->i", a, b)
    if similarity == "dot":
        return dot
    return dot / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
