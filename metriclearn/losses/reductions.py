"""Reduces the terms of a loss to a scalar."""

import tensorflow as tf

from metriclearn.distances import power_of_two
from metriclearn.pairs import Comparison
from metriclearn.registry import resolve


def reduce_terms(
    terms: tf.Tensor, reduction: str, comparison: Comparison, real: tf.Tensor | None = None
) -> tf.Tensor:
    """Reduces `[T]` terms. Without terms the result and its gradient are exactly 0.

    A NaN or infinity anywhere in the embeddings or references makes the result NaN or infinite,
    even if no term contains it, so that a broken model is visible in its loss.

    Args:
        terms: `[T]` floating point, one per triplet, pair or anchor.
        reduction: 'mean'; 'nonzero_mean', over the terms that are not 0; 'sum'; 'none'.
        comparison: the batch.
        real: `[T]` bool: terms that are not padding; None: all.

    Raises:
        ValueError: the reduction is unknown.
    """
    reduce = resolve(reduction, REDUCTIONS, "reduction")
    if real is None:
        count = tf.size(terms)
    else:
        terms, count = tf.where(real, terms, 0), tf.math.count_nonzero(real)
    reduced = reduce(terms, count) + _broken(comparison.embeddings)
    alone = comparison.references is comparison.embeddings
    return reduced if alone else reduced + _broken(comparison.references)


def _broken(embeddings: tf.Tensor) -> tf.Tensor:
    """The sum of the elements that are not finite: 0 if all are."""
    x = tf.stop_gradient(embeddings)
    return tf.cond(
        tf.math.is_finite(tf.reduce_sum(x)),  # one pass; false also where finite elements overflow
        lambda: tf.zeros([], x.dtype),
        lambda: tf.reduce_sum(tf.where(tf.math.is_finite(x), tf.zeros_like(x), x)),
    )


def _sum_over(terms: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """`sum(terms) / count`, 0 for a count of 0; the sum itself may be out of range."""
    unit = power_of_two(tf.reduce_max(tf.concat([tf.abs(terms), [1]], 0)))
    return unit * tf.math.divide_no_nan(tf.reduce_sum(terms / unit), tf.cast(count, terms.dtype))


def mean_of(terms: tf.Tensor) -> tf.Tensor:
    """The mean of `[T]` terms; 0 if there are none."""
    return _sum_over(terms, tf.size(terms))


# Functions of `[T]` terms and the number of terms that are not padding.
REDUCTIONS = {
    "mean": _sum_over,
    "nonzero_mean": lambda terms, count: _sum_over(terms, tf.math.count_nonzero(terms)),
    "sum": lambda terms, count: tf.reduce_sum(terms),
    "none": lambda terms, count: tf.identity(terms),
}
