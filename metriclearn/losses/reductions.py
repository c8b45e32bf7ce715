"""From the terms of a loss to one number."""

import tensorflow as tf

from metriclearn.registry import resolve


def reduce_terms(terms, reduction, comparison):
    """Reduces `[T]` terms as named; the reductions of no terms at all are 0, with gradient 0.

    A NaN or infinity anywhere in the embeddings makes the result one, also where mining passed it
    by: a broken model must show in its loss.

    Args:
        terms: `[T]` floating point, one a triplet, pair or anchor.
        reduction: 'mean'; 'nonzero_mean', over the terms that are not 0; 'sum'; 'none'.
        comparison: the batch, a `Comparison`.

    Raises:
        ValueError: unknown reduction.
    """
    total = tf.reduce_sum(tf.stop_gradient(comparison.embeddings))
    broken = tf.where(tf.math.is_finite(total), tf.zeros_like(total), total)
    return resolve(reduction, REDUCTIONS, "reduction")(terms) + broken


def _mean(terms):
    return tf.math.divide_no_nan(tf.reduce_sum(terms), tf.cast(tf.size(terms), terms.dtype))


def _nonzero_mean(terms):
    return tf.math.divide_no_nan(
        tf.reduce_sum(terms), tf.cast(tf.math.count_nonzero(terms), terms.dtype)
    )


REDUCTIONS = {
    "mean": _mean,
    "nonzero_mean": _nonzero_mean,
    "sum": tf.reduce_sum,
    "none": tf.identity,
}
