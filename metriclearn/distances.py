"""Distances between embeddings. Smaller is nearer, for every one of them.

A `Distance` owns its direction: a similarity (cosine, dot) enters as a distance, and mining works
on `nearness`, which grows as things come closer. Nothing outside this module asks which distance it
has.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from metriclearn.registry import resolve

# Elements gathered at a time for the distances of pairs: 8 MiB in float32.
PAIR_ELEMENTS = 2**21
# Up to this many elements a sum over pairs may gather all its rows: 32 MiB in float32.
SORTED_ELEMENTS = 2**23


class Distance(NamedTuple):
    """A way to compare embeddings, in the three forms that losses and miners need.

    Attributes:
        name: its name in `DISTANCES`.
        pairwise: `(x [N, D], y [M, D]) -> [N, M]`, differentiable. One matrix product.
        of_pairs: `(x [N, D], i [T], y [M, D], j [T]) -> [T]`, the distances of the pairs
            `(x[i], y[j])`, taken from differences and not from a Gram matrix. Backward costs
            O(T D) and makes no `[T, D]` tensor.
        nearness: `(y [M, D], dtype) -> (x [N, D] -> [N, M])`. The inner function orders each
            *row* as the distance does, reversed (largest = nearest). It may drop what is constant
            along a row, and its product runs in `dtype`. For mining; no gradient is meant to pass.
        nearness_at: `(x [N, D], bound) -> [N]`, the nearness to each row of x of what lies at the
            distance `bound` from it.
    """

    name: str
    pairwise: Callable
    of_pairs: Callable
    nearness: Callable
    nearness_at: Callable


def pairwise_distances(x, y=None, *, distance="euclidean"):
    """Distances of every row of `x` to every row of `y`.

    Args:
        x: `[N, D]` floating point.
        y: `[M, D]` of the same dtype; `x` itself when None.
        distance: 'euclidean' |x - y|, 'squared' |x - y|^2, 'cosine' 1 - x.y / |x||y| (1 for a zero
            vector), 'dot' -x.y, or a `Distance`.

    Returns:
        `[N, M]` of the dtype of `x`. Smaller is nearer. Where two rows are too close for the dtype
        to tell them apart from rounding, the Euclidean distances are exactly 0; the gradient at
        distance 0 is 0.

    Raises:
        ValueError: the name of the distance is unknown.
    """
    x = tf.convert_to_tensor(x)
    y = x if y is None else tf.convert_to_tensor(y, x.dtype)
    with tf.name_scope("pairwise_distances"):
        return resolve(distance, DISTANCES, "distance").pairwise(x, y)


def _safe_sqrt(x):
    # The double `where`: the inner one keeps 1/sqrt(0) out of the backward pass, which the outer
    # alone would multiply by 0 and turn into NaN.
    positive = x > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, x, 1)), tf.zeros_like(x))


def normalised(x):
    """Rows of length 1; a zero row stays 0 and gets no gradient."""
    squared = tf.reduce_sum(x * x, axis=-1, keepdims=True)
    positive = squared > 0
    return tf.where(positive, x * tf.math.rsqrt(tf.where(positive, squared, 1)), 0)


def _squared_pairwise(x, y):
    x_norms = tf.reduce_sum(x * x, axis=1)[:, None]
    y_norms = tf.reduce_sum(y * y, axis=1)
    squared = x_norms + y_norms - 2 * tf.matmul(x, y, transpose_b=True)
    # |x|^2 + |y|^2 - 2 x.y cancels for neighbours; below a few units in the last place it is noise,
    # and the root of noise would have a huge gradient of random direction.
    noise = 8 * np.finfo(x.dtype.as_numpy_dtype).eps * tf.stop_gradient(x_norms + y_norms)
    return tf.where(squared <= noise, tf.zeros_like(squared), squared)


def _weighted_sums(i, weights, j, x, rows):
    """`[rows, D]`: row r is the sum of `weights[t] * x[j[t]]` over the t with `i[t] = r`."""

    def sorted_sums():
        order = tf.argsort(i)
        products = tf.gather(x, tf.gather(j, order)) * tf.gather(weights, order)[:, None]
        sums = tf.math.segment_sum(products, tf.gather(i, order))
        return tf.pad(sums, [[0, rows - tf.shape(sums)[0]], [0, 0]])  # rows after the last i

    def sparse_product():
        indices = tf.stack([tf.cast(i, tf.int64), tf.cast(j, tf.int64)], axis=1)
        shape = tf.cast(tf.stack([rows, tf.shape(x)[0]]), tf.int64)
        return tf.sparse.sparse_dense_matmul(tf.SparseTensor(indices, weights, shape), x)

    # Sorted sums are 1.6 times as fast, and keep one row for each pair.
    small = tf.size(i) * tf.shape(x)[1] <= SORTED_ELEMENTS
    return tf.cond(small, sorted_sums, sparse_product)


def _reduce_pairs(combine, x, i, y, j):
    """`[T]`: `combine(x[i], y[j])` summed over the dimension, a block of pairs at a time."""

    def block(i, j):
        return tf.reduce_sum(combine(tf.gather(x, i), tf.gather(y, j)), axis=1)

    pairs, dimension = tf.size(i), tf.shape(x)[1]
    if x.shape.is_fully_defined() and x.shape.num_elements() <= PAIR_ELEMENTS:
        return block(i, j)
    step = tf.maximum(PAIR_ELEMENTS // dimension, 1)

    def body(k, array):
        at = slice(k * step, tf.minimum((k + 1) * step, pairs))
        return k + 1, array.write(k, block(i[at], j[at]))

    array = tf.TensorArray(x.dtype, 0, dynamic_size=True, infer_shape=False, element_shape=[None])
    more = lambda k, _: (k * step < pairs) | tf.equal(k, 0)  # noqa: E731
    return tf.while_loop(more, body, (0, array), parallel_iterations=1)[1].concat()


# The gradients of the two below are sums over pairs, and a sum over pairs is a product with a
# sparse matrix: O(T D), and no [T, D] tensor is kept for it. Where x is y, one product does both.


def _squared_of_pairs(x, i, y, j):
    def value(x, y):
        return _reduce_pairs(tf.math.squared_difference, x, i, y, j)

    def gradient(at, to, upstream, x, y):
        rows = tf.shape(x)[0]
        degrees = tf.math.unsorted_segment_sum(2 * upstream, at, rows)
        if x is y:  # one matrix, the graph's Laplacian, and no temporary besides the result
            every = tf.range(rows)
            i, j = tf.concat([at, every], 0), tf.concat([to, every], 0)
            return _weighted_sums(i, tf.concat([-2 * upstream, degrees], 0), j, x, rows)
        return degrees[:, None] * x - _weighted_sums(at, 2 * upstream, to, y, rows)

    return _with_pair_gradient(value, gradient, x, i, y, j)


def _dot_of_pairs(x, i, y, j):
    def value(x, y):
        return _reduce_pairs(tf.multiply, x, i, y, j)

    def gradient(at, to, upstream, x, y):
        return _weighted_sums(at, upstream, to, y, tf.shape(x)[0])

    return _with_pair_gradient(value, gradient, x, i, y, j)


def _with_pair_gradient(value, gradient, x, i, y, j):
    """`value(x, y)` with the gradient `gradient(i, j, upstream, x, y)` at x; at y the reverse."""
    if x is y:

        @tf.custom_gradient
        def symmetric(x):
            def backward(upstream):
                both = tf.concat([i, j], 0), tf.concat([j, i], 0), tf.tile(upstream, [2])
                return gradient(*both, x, x)

            return value(x, x), backward

        return symmetric(x)

    @tf.custom_gradient
    def between(x, y):
        def backward(upstream):
            return gradient(i, j, upstream, x, y), gradient(j, i, upstream, y, x)

        return value(x, y), backward

    return between(x, y)


def _products(y, dtype):
    # Transposed once: the rows of a batch come in blocks, and each block's product would otherwise
    # reorder all of y.
    columns = tf.transpose(tf.cast(y, dtype))
    return lambda x: tf.cast(tf.matmul(tf.cast(x, dtype), columns), y.dtype)


def _squared_nearness(y, dtype):
    # |x - y|^2 = |x|^2 - 2 (x.y - |y|^2 / 2), and |x|^2 is the same along a row.
    half_norms = tf.reduce_sum(y * y, axis=1) / 2
    products = _products(y, dtype)
    return lambda x: products(x) - half_norms


def _cosine_of_pairs(x, i, y, j):
    u = normalised(x)
    return 1 - _dot_of_pairs(u, i, u if y is x else normalised(y), j)


def _squared_nearness_at(x, bound):
    return (tf.reduce_sum(x * x, axis=1) - bound) / 2


EUCLIDEAN = Distance(
    "euclidean",
    lambda x, y: _safe_sqrt(_squared_pairwise(x, y)),
    lambda x, i, y, j: _safe_sqrt(_squared_of_pairs(x, i, y, j)),
    _squared_nearness,
    lambda x, bound: _squared_nearness_at(x, bound**2),
)
SQUARED = Distance(
    "squared", _squared_pairwise, _squared_of_pairs, _squared_nearness, _squared_nearness_at
)
COSINE = Distance(
    "cosine",
    lambda x, y: 1 - tf.matmul(normalised(x), normalised(y), transpose_b=True),
    _cosine_of_pairs,
    # The length of x scales its whole row and cannot change the order.
    lambda y, dtype: _products(normalised(y), dtype),
    lambda x, bound: (1 - bound) * tf.norm(x, axis=1),
)
DOT = Distance(
    "dot",
    lambda x, y: -tf.matmul(x, y, transpose_b=True),
    lambda x, i, y, j: -_dot_of_pairs(x, i, y, j),
    _products,
    lambda x, bound: tf.fill([tf.shape(x)[0]], tf.cast(-bound, x.dtype)),
)

DISTANCES = {d.name: d for d in (EUCLIDEAN, SQUARED, COSINE, DOT)}
