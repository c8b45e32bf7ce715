"""Distances between embeddings. For each of them, smaller is nearer.

Each `Distance` defines whether larger means nearer; miners do not need to know. A similarity
(cosine, dot) is turned into a distance, and miners rank by `nearness`, which grows as rows come
closer.

Finite embeddings give finite distances and gradients over the whole range of the dtype, wherever
the result itself is in range: sums of squares that would overflow or vanish are computed in units
of a power of two, which rounds nothing. A NaN gives NaN.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from metriclearn.inputs import TensorLike, float_matrix
from metriclearn.registry import resolve
from metriclearn.xla import compiling

# Elements gathered at a time for the distances of pairs: 8 MiB in float32.
PAIR_ELEMENTS = 2**21


class Nearness(NamedTuple):
    """Ranks references by their distance: the larger, the nearer. For mining, without gradients.

    Attributes:
        scores: `x [b, D] -> [b, M]`, ordered along each row as the distances, reversed. What is
            constant along a row may be missing.
        limit: `(x [b, D], bound) -> [b]`, the score of a reference at the distance `bound`.
    """

    scores: Callable[[tf.Tensor], tf.Tensor]
    limit: Callable[[tf.Tensor, Any], tf.Tensor]


class Symmetric(NamedTuple):
    """Scores of rows among themselves as `x[i] . x[j] + bias[j]`. For mining, without gradients.

    Attributes:
        bias: `[N]`.
        holds: bool scalar: these scores are in range and keep the digits that matter.
    """

    bias: tf.Tensor
    holds: tf.Tensor


class Distance(NamedTuple):
    """A way to compare embeddings, in the three forms that losses and miners need.

    Attributes:
        name: its name in `DISTANCES`.
        pairwise: `(x [N, D], y [M, D]) -> [N, M]`, differentiable. One matrix product.
        of_pairs: `(x [N, D], i [T], y [M, D], j [T]) -> [T]`, the distances of the pairs
            `(x[i], y[j])`, computed from the rows' differences, differentiable. O(T D) time;
            memory is O(N D + M D + T) plus one block of rows.
        nearness: `(x [N, D], y [M, D], dtype) -> Nearness` of rows of x to all rows of y; its
            matrix product runs in `dtype`.
        symmetric: `x [N, D] -> Symmetric`; None if its scores are not of that form.
    """

    name: str
    pairwise: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    of_pairs: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    nearness: Callable[[tf.Tensor, tf.Tensor, tf.DType], Nearness]
    symmetric: Callable[[tf.Tensor], Symmetric] | None = None


def pairwise_distances(
    x: TensorLike, y: TensorLike | None = None, *, distance: str | Distance = "euclidean"
) -> tf.Tensor:
    """Distances of every row of `x` to every row of `y`, by one matrix product.

    Args:
        x: `[N, D]` floating point. Half precision is computed in float32.
        y: `[M, D]` of the same dtype; `x` itself if None.
        distance: 'euclidean' |x - y|, 'squared' |x - y|^2, 'cosine' 1 - x.y / |x||y| (1 for a zero
            vector), 'dot' -x.y, or a `Distance`.

    Returns:
        `[N, M]` of the dtype of `x`. Euclidean distances below the rounding error of the product,
        about sqrt(8 eps (|x|^2 + |y|^2)), are exactly 0. The gradient at distance 0 is 0. Results
        beyond the dtype's range ('squared' and 'dot' of rows longer than 1e19) are infinite.

    Raises:
        ValueError: an unknown distance, or `x` or `y` are not matrices of floats.
    """
    dtype = tf.convert_to_tensor(x).dtype
    x = float_matrix(x, "x")
    y = x if y is None else tf.cast(float_matrix(y, "y"), x.dtype)
    with tf.name_scope("pairwise_distances"):
        return tf.cast(resolve(distance, DISTANCES, "distance").pairwise(x, y), dtype)


def normalize(x: tf.Tensor) -> tf.Tensor:
    """Rows `[N, D]` scaled to length 1; a zero row stays 0 and gets no gradient."""
    x = x / _row_size(x)
    length = tf.sqrt(tf.reduce_sum(x * x, axis=1, keepdims=True))
    zero = tf.equal(length, 0)
    return tf.where(zero, tf.zeros_like(x), x / tf.where(zero, tf.ones_like(length), length))


# ---------------------------------------------------------------------------- the range of floats


def power_of_two(x: tf.Tensor) -> tf.Tensor:
    """The largest power of two that is at most x, for x >= 0; without gradient.

    Kept where the inverse is in range, too: dividing by the result is exact, and x = 0 is legal.
    """
    bits, exponent = {4: (tf.int32, 0x7F800000), 8: (tf.int64, 0x7FF0000000000000)}[x.dtype.size]
    words = tf.bitwise.bitwise_and(tf.bitcast(tf.stop_gradient(x), bits), exponent)
    smallest = float(np.finfo(x.dtype.as_numpy_dtype).tiny)
    return tf.clip_by_value(tf.bitcast(words, x.dtype), smallest, 1 / smallest)


def _row_size(x: tf.Tensor) -> tf.Tensor:
    """`[N, 1]`: the power of two below the largest element of each row."""
    return power_of_two(tf.reduce_max(tf.abs(x), axis=1, keepdims=True))


def are_calm(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Bool scalar: whether products of these rows neither overflow nor vanish."""
    return _is_calm(x) if x is y else _is_calm(x) & _is_calm(y)


def _is_calm(x: tf.Tensor) -> tf.Tensor:
    info = np.finfo(x.dtype.as_numpy_dtype)
    largest = tf.reduce_max(tf.abs(x), axis=1)
    lowest = float(np.sqrt(info.tiny / info.eps))
    highest = float(np.sqrt(info.max / 8))
    if x.shape[1]:
        highest *= x.shape[1] ** -0.5
    else:
        highest *= tf.math.rsqrt(tf.cast(tf.shape(x)[1], x.dtype))
    in_range = (largest >= lowest) & (largest <= highest)
    return tf.reduce_all(tf.equal(largest, 0) | in_range)


def _center(y: tf.Tensor) -> tf.Tensor:
    """`[D]`: a row of y that all others are close to, else 0.

    |x|^2 + |y|^2 - 2 x.y loses the digits that the rows share. Subtracting a row (which is exact
    between close ones) keeps them: embeddings that collapse can still be told apart.
    """
    first = tf.reduce_sum(tf.stop_gradient(y[:1]), axis=0)  # 0 if there is no row
    close = tf.reduce_max(tf.abs(y - first)) <= tf.reduce_max(tf.abs(first)) / 8
    return tf.where(close, first, tf.zeros_like(first))


# ---------------------------------------------------------------------------- all pairs


def _safe_sqrt(x: tf.Tensor) -> tf.Tensor:
    # The inner `where` keeps 1/sqrt(0) out of the backward pass; the outer one alone would multiply
    # it by 0, which is NaN.
    zero = x <= 0
    return tf.where(zero, tf.zeros_like(x), tf.sqrt(tf.where(zero, tf.ones_like(x), x)))


def _without_noise(squared: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    # |x|^2 + |y|^2 - 2 x.y cancels for close rows. Below a few units in the last place it is noise,
    # and the root of noise would have a huge gradient of random direction.
    noise = 8 * np.finfo(norms.dtype.as_numpy_dtype).eps * tf.stop_gradient(norms)
    return tf.where(squared < noise, tf.zeros_like(squared), squared)  # infinity stays


def _squared_and_unit(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(`[N, M]` |x - y|^2 / unit^2, `[N, M]` unit): squares of any finite rows, in range."""
    x_size, y_size = _row_size(x), _row_size(y)  # [N, 1], [M, 1]
    x, y = x / x_size, y / y_size
    unit = tf.maximum(x_size, tf.transpose(y_size))  # [N, M]
    x_share, y_share = x_size / unit, tf.transpose(y_size) / unit  # [N, M], powers of two up to 1
    x_norms = tf.reduce_sum(x * x, axis=1)[:, None] * x_share**2
    y_norms = tf.reduce_sum(y * y, axis=1) * y_share**2
    products = tf.matmul(x, y, transpose_b=True) * x_share * y_share
    return _without_noise(x_norms + y_norms - 2 * products, x_norms + y_norms), unit


def _squared_pairwise(x: tf.Tensor, y: tf.Tensor, root: bool = False) -> tf.Tensor:
    center = _center(y)
    x, y = (x - center,) * 2 if x is y else (x - center, y - center)

    def plain() -> tf.Tensor:
        norms = tf.reduce_sum(x * x, axis=1)[:, None] + tf.reduce_sum(y * y, axis=1)
        squared = _without_noise(norms - 2 * tf.matmul(x, y, transpose_b=True), norms)
        return _safe_sqrt(squared) if root else squared

    def scaled() -> tf.Tensor:
        squared, unit = _squared_and_unit(x, y)
        return _safe_sqrt(squared) * unit if root else squared * unit * unit

    return tf.cond(are_calm(x, y), plain, scaled)


def _euclidean_pairwise(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return _squared_pairwise(x, y, root=True)


# ---------------------------------------------------------------------------- given pairs


def _pair_function(value: Callable, slopes: Callable) -> Callable:
    """Makes `(x, i, y, j) -> [T]` of functions on gathered rows, a block of pairs at a time.

    Args:
        value: `(a [t, D], b [t, D]) -> [t]`.
        slopes: `(a [t, D], b [t, D], values [t], upstream [t]) -> (at a [t, D], at b [t, D])`: the
            gradient, computed from the rows themselves, so close rows lose no digits. None at b
            means the opposite of that at a.
    """

    def of_pairs(x: tf.Tensor, i: tf.Tensor, y: tf.Tensor, j: tf.Tensor) -> tf.Tensor:
        i, j = tf.convert_to_tensor(i), tf.convert_to_tensor(j)

        def rows(x: tf.Tensor, y: tf.Tensor, at: slice) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.gather(x, i[at]), tf.gather(y, j[at])

        def forward(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tuple | None]:
            """(values, gathered rows where they are few enough to keep for the gradient)."""
            if _are_few(x):
                kept = rows(x, y, slice(None))
                return value(*kept), kept
            return _in_blocks(lambda at: value(*rows(x, y, at)), i, x), None

        def backward(
            x: tf.Tensor, y: tf.Tensor, values: tf.Tensor, kept: tuple | None, upstream: tf.Tensor
        ) -> list:
            def add(at: slice, sums: list[tf.Tensor]) -> list[tf.Tensor]:
                at_a, at_b = slopes(*(kept or rows(x, y, at)), values[at], upstream[at])
                sums = [tf.tensor_scatter_nd_add(sums[0], i[at][:, None], at_a), *sums[1:]]
                if at_b is None:
                    return [*sums[:-1], tf.tensor_scatter_nd_sub(sums[-1], j[at][:, None], at_a)]
                return [*sums[:-1], tf.tensor_scatter_nd_add(sums[-1], j[at][:, None], at_b)]

            sums = [tf.zeros_like(x)] if x is y else [tf.zeros_like(x), tf.zeros_like(y)]
            return _fold_blocks(add, sums, i, x)

        if x is y:  # one sum for both sides

            @tf.custom_gradient
            def among(x: tf.Tensor) -> tuple:
                values, kept = forward(x, x)
                return values, lambda upstream: backward(x, x, values, kept, upstream)[0]

            return among(x)

        @tf.custom_gradient
        def between(x: tf.Tensor, y: tf.Tensor) -> tuple:
            values, kept = forward(x, y)
            return values, lambda upstream: backward(x, y, values, kept, upstream)

        return between(x, y)

    return of_pairs


def _is_one_block(x: tf.Tensor) -> bool:
    # How many pairs there are depends on the data; usually it is a few per row. XLA fuses the
    # gathering into the sums, so that one block costs it no memory.
    return compiling() or (x.shape.is_fully_defined() and x.shape.num_elements() <= PAIR_ELEMENTS)


def _are_few(x: tf.Tensor) -> bool:
    return x.shape.is_fully_defined() and x.shape.num_elements() <= PAIR_ELEMENTS // 8


def _blocks_of_pairs(i: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, Callable[..., slice]]:
    """(number of blocks, the pairs of a block)."""
    pairs = tf.size(i)
    size = tf.maximum(PAIR_ELEMENTS // tf.maximum(tf.shape(x)[1], 1), 1)
    return -(-pairs // size), lambda k: slice(k * size, tf.minimum((k + 1) * size, pairs))


def _in_blocks(function: Callable[[slice], tf.Tensor], i: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """`[T]`: the function's `[t]` results for all blocks of pairs."""
    if _is_one_block(x):
        return function(slice(None))
    count, pairs_of = _blocks_of_pairs(i, x)
    results = tf.TensorArray(x.dtype, 0, dynamic_size=True, infer_shape=False, element_shape=[None])
    _, results = tf.while_loop(
        lambda k, _: k < tf.maximum(count, 1),  # concat needs an element
        lambda k, results: (k + 1, results.write(k, function(pairs_of(k)))),
        (0, results),
        parallel_iterations=1,
    )
    return results.concat()


def _fold_blocks(add: Callable, sums: list[tf.Tensor], i: tf.Tensor, x: tf.Tensor) -> list:
    """Calls `sums = add(block, sums)` for all blocks of pairs."""
    if _is_one_block(x):
        return add(slice(None), sums)
    count, pairs_of = _blocks_of_pairs(i, x)
    _, *sums = tf.while_loop(
        lambda k, *_: k < count,
        lambda k, *sums: (k + 1, *add(pairs_of(k), list(sums))),
        (0, *sums),
        parallel_iterations=1,
    )
    return sums


def _length_of_difference(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    squared = tf.reduce_sum(tf.math.squared_difference(a, b), axis=1)
    info = np.finfo(a.dtype.as_numpy_dtype)

    def scaled() -> tf.Tensor:
        difference = a - b
        unit = _row_size(difference)
        return tf.sqrt(tf.reduce_sum((difference / unit) ** 2, axis=1)) * unit[:, 0]

    in_range = (squared >= float(info.tiny / info.eps)) & (squared <= float(info.max))
    return tf.cond(tf.reduce_all(in_range), lambda: tf.sqrt(squared), scaled)


def _slopes_of_length(a: tf.Tensor, b: tf.Tensor, length: tf.Tensor, upstream: tf.Tensor) -> tuple:
    # At distance 0 the difference is 0, and so is the gradient.
    length = tf.where(tf.equal(length, 0), tf.ones_like(length), length)
    rows = tf.cond(
        tf.reduce_all((length > 2.0**-100) & (length < 2.0**100)),
        lambda: (a - b) * (upstream / length)[:, None],
        # In this order the weight of a pair may leave the dtype's range, so here in the other.
        lambda: (a - b) / length[:, None] * upstream[:, None],
    )
    return rows, None


def _slopes_of_square(a: tf.Tensor, b: tf.Tensor, _: tf.Tensor, upstream: tf.Tensor) -> tuple:
    return (a - b) * (2 * upstream[:, None]), None


_euclidean_of_pairs = _pair_function(_length_of_difference, _slopes_of_length)
_squared_of_pairs = _pair_function(
    lambda a, b: tf.reduce_sum(tf.math.squared_difference(a, b), axis=1), _slopes_of_square
)
_dot_of_pairs = _pair_function(
    lambda a, b: tf.reduce_sum(a * b, axis=1),
    lambda a, b, _, upstream: (b * upstream[:, None], a * upstream[:, None]),
)


def _cosine_of_pairs(x: tf.Tensor, i: tf.Tensor, y: tf.Tensor, j: tf.Tensor) -> tf.Tensor:
    directions = normalize(x)
    return 1 - _dot_of_pairs(directions, i, directions if y is x else normalize(y), j)


# ---------------------------------------------------------------------------- ranking


def _products(y: tf.Tensor, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """`x [N, D] -> x y^T [N, M]`, computed in `dtype`; of the dtype of y."""
    # float16 reaches 65504 only: rows enter with elements below 2.
    narrow = dtype == tf.float16
    y_size = _row_size(y) if narrow else None
    # Transposed once: rows of x come in blocks, and each block's product would reorder all of y.
    columns = tf.transpose(tf.cast(y / y_size if narrow else y, dtype))

    def multiply(x: tf.Tensor) -> tf.Tensor:
        x_size = _row_size(x) if narrow else None
        products = tf.matmul(tf.cast(x / x_size if narrow else x, dtype), columns)
        products = tf.cast(products, y.dtype)
        return products * x_size * tf.transpose(y_size) if narrow else products

    return multiply


def _euclidean_symmetric(x: tf.Tensor) -> Symmetric:
    # As in `_euclidean_nearness`, where no center is needed.
    norms = tf.reduce_sum(x * x, axis=1)
    return Symmetric(norms / -2, _is_spread(x, norms) & _is_calm(x))


def _is_spread(y: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """Bool scalar: rows do not share most of their length."""
    mean = tf.reduce_mean(y, axis=0)
    return tf.reduce_sum(mean * mean) < tf.reduce_mean(norms) * (1 - 1 / 64)


def _euclidean_nearness(
    x: tf.Tensor, y: tf.Tensor, dtype: tf.DType, squared: bool = False
) -> Nearness:
    # |x - y|^2 = |x|^2 - 2 (x.y - |y|^2 / 2), and |x|^2 is the same along a row. Where rows share
    # most of their length, the first one is subtracted; see `_center`.
    norms = tf.reduce_sum(y * y, axis=1)
    is_spread = _is_spread(y, norms)
    center = tf.where(is_spread, tf.zeros_like(y[0]), y[0])

    def shifted() -> tuple[tf.Tensor, tf.Tensor]:
        from_center = y - center
        return from_center, tf.reduce_sum(from_center**2, axis=1)

    from_center, norms = tf.cond(is_spread, lambda: (y, norms), shifted)
    products, half_norms = _products(from_center, dtype), norms / -2
    is_plain = _is_calm(from_center) if x is y else are_calm(x - center, from_center)

    def scores(x: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            is_plain,
            lambda: tf.nn.bias_add(products(x - center), half_norms),  # one kernel with the product
            lambda: -_euclidean_pairwise(x, y),
        )

    def limit(x: tf.Tensor, bound: Any) -> tf.Tensor:
        bound = tf.cast(bound, x.dtype)
        square = bound if squared else bound**2
        return tf.cond(
            is_plain,
            lambda: (tf.reduce_sum((x - center) ** 2, axis=1) - square) / 2,
            lambda: tf.fill([tf.shape(x)[0]], -_safe_sqrt(bound) if squared else -bound),
        )

    return Nearness(scores, limit)


def _cosine_nearness(x: tf.Tensor, y: tf.Tensor, dtype: tf.DType) -> Nearness:
    # The length of x scales its whole row and does not change the order, nor does subtracting one
    # vector from all directions.
    directions = normalize(y)
    center = _center(directions)
    products = _products(directions - center, dtype)

    def limit(x: tf.Tensor, bound: Any) -> tf.Tensor:
        x = x / _row_size(x)
        return (1 - bound) * tf.norm(x, axis=1) - tf.reduce_sum(x * center, axis=1)

    return Nearness(lambda x: products(x / _row_size(x)), limit)


def _dot_nearness(x: tf.Tensor, y: tf.Tensor, dtype: tf.DType) -> Nearness:
    products = _products(y, dtype)

    def limit(x: tf.Tensor, bound: Any) -> tf.Tensor:
        return tf.cast(-bound, x.dtype) / _row_size(x)[:, 0]

    return Nearness(lambda x: products(x / _row_size(x)), limit)


EUCLIDEAN = Distance(
    "euclidean",
    _euclidean_pairwise,
    _euclidean_of_pairs,
    _euclidean_nearness,
    _euclidean_symmetric,
)
SQUARED = Distance(
    "squared",
    _squared_pairwise,
    _squared_of_pairs,
    lambda x, y, dtype: _euclidean_nearness(x, y, dtype, squared=True),
    _euclidean_symmetric,
)
COSINE = Distance(
    "cosine",
    lambda x, y: 1 - tf.matmul(normalize(x), normalize(y), transpose_b=True),
    _cosine_of_pairs,
    _cosine_nearness,
)
DOT = Distance(
    "dot",
    lambda x, y: -tf.matmul(x, y, transpose_b=True),
    lambda x, i, y, j: -_dot_of_pairs(x, i, y, j),
    _dot_nearness,
)

# For rows of length 1: the scores are the dot products themselves. Not an option of its own.
ON_SPHERE = DOT._replace(
    nearness=lambda x, y, dtype: Nearness(
        _products(y, dtype), lambda x, bound: tf.fill([tf.shape(x)[0]], tf.cast(-bound, x.dtype))
    )
)

DISTANCES = {d.name: d for d in (EUCLIDEAN, SQUARED, COSINE, DOT)}
