"""Losses on distributions of the pairs or triplets of the whole batch.

Arguments, returns and errors are those of `metriclearn.losses.pairwise`.
"""

import tensorflow as tf

from metriclearn.distances import EUCLIDEAN
from metriclearn.inputs import TensorLike
from metriclearn.losses.matrices import all_differences, cosines
from metriclearn.losses.reductions import reduce_terms
from metriclearn.pairs import References, compare


def histogram_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    bins: int = 100,
    references: References | None = None,
) -> tf.Tensor:
    """The probability that a random negative pair is more similar than a random positive pair.

    Ustinova, Lempitsky: Learning Deep Embeddings with Histogram Loss (arXiv 1611.00822), eq. 4:
    `sum_r h-_r sum_{q <= r} h+_q`, h the histograms of the cosines of negative and positive pairs.
    Each cosine is divided linearly between the two nearest of `bins` + 1 nodes on [-1, 1]. It has
    no margin to tune, but only pairs near the overlap of the histograms get a gradient. There is
    one value per batch, so there is no reduction; 0 without a positive or without a negative pair.
    """
    with tf.name_scope("histogram_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        place = (tf.reshape(s, [-1]) + 1) * (bins / 2)

        def density(mask: tf.Tensor) -> tf.Tensor:
            counts = histogram(place, tf.reshape(tf.cast(mask, s.dtype), [-1]), bins)
            return tf.math.divide_no_nan(counts, tf.cast(tf.math.count_nonzero(mask), s.dtype))

        value = tf.reduce_sum(density(negative) * tf.cumsum(density(positive)))
        return reduce_terms(value[None], "sum", comparison)


def dynamic_soft_margin_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    bins: int = 10,
    momentum: float = 0.01,
    histogram_of_past: tf.Variable | None = None,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Weights each triplet by the fraction of easier triplets; it has no margin.

    Zhang, Rusinkiewicz: Learning Local Descriptors with a CDF-Based Dynamic Soft Margin (ICCV
    2019): `w (d(a, p) - d(a, n))` on Euclidean distances of normalized embeddings, w the cumulative
    histogram of these differences, without gradient, over nodes at equal steps from -2 to 2.
    It uses every triplet, in O(pairs M); `triplet_loss(soft_margin=True)` with mined triplets is
    cheaper and supersedes it in large batches.

    Args:
        bins: number of steps from -2 to 2.
        momentum: weight of the batch in the running histogram.
        histogram_of_past: a `[bins + 1]` variable with the running histogram, initially zeros; it
            is updated. None: use only the histogram of the batch.

    Terms: one per triplet, ordered by anchor, positive, negative.
    """
    with tf.name_scope("dynamic_soft_margin_loss"):
        comparison = compare(labels, embeddings, references).normalized()
        d = EUCLIDEAN.pairwise(comparison.embeddings, comparison.references)
        differences, counted = all_differences(comparison, d)
        place = tf.stop_gradient((differences + 2) * (bins / 4))
        each = tf.ones_like(place) if counted is None else tf.cast(counted, place.dtype)
        shares = histogram(place, each, bins)
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares))
        if histogram_of_past is not None:
            past = tf.convert_to_tensor(histogram_of_past)
            first = tf.equal(tf.reduce_sum(past), 0)
            shares = tf.where(first, shares, (1 - momentum) * past + momentum * shares)
            shares = histogram_of_past.assign(shares, read_value=True)
        node = tf.clip_by_value(tf.cast(tf.floor(place), tf.int32), 0, bins)
        terms = tf.gather(tf.cumsum(shares), node) * differences
        return reduce_terms(terms, reduction, comparison, counted)


def histogram(place: tf.Tensor, weights: tf.Tensor, bins: int) -> tf.Tensor:
    """`[bins + 1]`: weights `[T]`, each divided linearly between the nodes beside `place` `[T]`."""
    place = tf.clip_by_value(place, 0, bins)
    below = tf.minimum(tf.cast(tf.floor(tf.stop_gradient(place)), tf.int32), bins - 1)
    share = place - tf.cast(below, place.dtype)
    return tf.math.unsorted_segment_sum(
        weights * (1 - share), below, bins + 1
    ) + tf.math.unsorted_segment_sum(weights * share, below + 1, bins + 1)
