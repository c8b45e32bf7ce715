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
    """

    name: str
    pairwise: Callable
    of_pairs: Callable
    nearness: Callable


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


def _normalised(x):
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


def _scatter(i, weights, values, j, rows):
    """`out[r] = sum of weights[t] * values[j[t]] over the t with i[t] = r`, as a sparse product."""
    indices = tf.stack([tf.cast(i, tf.int64), tf.cast(j, tf.int64)], axis=1)
    shape = tf.stack([tf.cast(rows, tf.int64), tf.shape(values, out_type=tf.int64)[0]])
    return tf.sparse.sparse_dense_matmul(tf.SparseTensor(indices, weights, shape), values)


def _squared_of_pairs(x, i, y, j):
    @tf.custom_gradient
    def squared(x, y):
        def backward(upstream):
            rows, columns = tf.shape(x)[0], tf.shape(y)[0]
            at_x = tf.math.unsorted_segment_sum(upstream, i, rows)[:, None] * x
            at_y = tf.math.unsorted_segment_sum(upstream, j, columns)[:, None] * y
            return (
                2 * (at_x - _scatter(i, upstream, y, j, rows)),
                2 * (at_y - _scatter(j, upstream, x, i, columns)),
            )

        difference = tf.gather(x, i) - tf.gather(y, j)
        return tf.reduce_sum(difference * difference, axis=1), backward

    return squared(x, y)


def _dot_of_pairs(x, i, y, j):
    @tf.custom_gradient
    def dot(x, y):
        def backward(upstream):
            return (
                _scatter(i, upstream, y, j, tf.shape(x)[0]),
                _scatter(j, upstream, x, i, tf.shape(y)[0]),
            )

        return tf.reduce_sum(tf.gather(x, i) * tf.gather(y, j), axis=1), backward

    return dot(x, y)


def _product(x, y, dtype):
    return tf.matmul(tf.cast(x, dtype), y, transpose_b=True)


def _squared_nearness(y, dtype):
    # |x - y|^2 = |x|^2 - 2 (x.y - |y|^2 / 2), and |x|^2 is the same along a row.
    half_norms = tf.reduce_sum(y * y, axis=1) / 2
    cast = tf.cast(y, dtype)
    return lambda x: tf.cast(_product(x, cast, dtype), y.dtype) - half_norms


def _dot_nearness(y, dtype):
    cast = tf.cast(y, dtype)
    return lambda x: tf.cast(_product(x, cast, dtype), y.dtype)


def _cosine_of_pairs(x, i, y, j):
    return 1 - _dot_of_pairs(_normalised(x), i, _normalised(y), j)


EUCLIDEAN = Distance(
    "euclidean",
    lambda x, y: _safe_sqrt(_squared_pairwise(x, y)),
    lambda x, i, y, j: _safe_sqrt(_squared_of_pairs(x, i, y, j)),
    _squared_nearness,
)
SQUARED = Distance("squared", _squared_pairwise, _squared_of_pairs, _squared_nearness)
COSINE = Distance(
    "cosine",
    lambda x, y: 1 - tf.matmul(_normalised(x), _normalised(y), transpose_b=True),
    _cosine_of_pairs,
    # The length of x scales its whole row and cannot change the order.
    lambda y, dtype: _dot_nearness(_normalised(y), dtype),
)
DOT = Distance(
    "dot",
    lambda x, y: -tf.matmul(x, y, transpose_b=True),
    lambda x, i, y, j: -_dot_of_pairs(x, i, y, j),
    _dot_nearness,
)

DISTANCES = {d.name: d for d in (EUCLIDEAN, SQUARED, COSINE, DOT)}
