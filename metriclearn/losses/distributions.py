"""Losses on statistics of the whole batch: distributions of pairs, moments of dimensions.

Arguments, returns and errors are those of `metriclearn.losses.pairwise`.
"""

import tensorflow as tf

from metriclearn.distances import EUCLIDEAN
from metriclearn.inputs import TensorLike, refuse_xla
from metriclearn.losses.matrices import cosines
from metriclearn.losses.reductions import mean_of, reduce_terms
from metriclearn.pairs import Comparison, References, compare, masks


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
    no margin to tune, but only pairs near the overlap of the two get a gradient. The value belongs
    to the batch, so it has no reduction; 0 without a positive or without a negative pair.
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
    """Weights each triplet by the share of triplets that are easier: no margin to choose.

    Zhang, Rusinkiewicz: Learning Local Descriptors with a CDF-Based Dynamic Soft Margin (ICCV
    2019): `w (d(a, p) - d(a, n))` on Euclidean distances of normalized embeddings, w the cumulative
    histogram of these differences, without gradient, over nodes at equal steps from -2 to 2.
    It takes every triplet, in O(pairs M); `triplet_loss(soft_margin=True)` on mined ones is cheaper
    and supersedes it in large batches.

    Args:
        bins: steps from -2 to 2.
        momentum: the batch's weight in the histogram, if there is one of the past.
        histogram_of_past: a `[bins + 1]` variable that keeps the running histogram, all zeros at
            first; it is updated. If None, the batch's own histogram is used.

    Terms: one per triplet, ordered by anchor, positive, negative.
    """
    with tf.name_scope("dynamic_soft_margin_loss"):
        comparison = compare(labels, embeddings, references).normalized()
        d = EUCLIDEAN.pairwise(comparison.embeddings, comparison.references)
        positive, negative = masks(comparison)
        refused = refuse_xla(d, "every_triplet_has_shapes_that_depend_on_data")
        with tf.control_dependencies(refused):
            pairs = tf.where(positive & tf.reduce_any(negative, axis=1, keepdims=True))
        differences = tf.gather_nd(d, pairs)[:, None] - tf.gather(d, pairs[:, 0])
        differences = tf.boolean_mask(differences, tf.gather(negative, pairs[:, 0]))
        place = tf.stop_gradient((differences + 2) * (bins / 4))
        shares = histogram(place, tf.ones_like(place), bins)
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares))
        if histogram_of_past is not None:
            past = tf.convert_to_tensor(histogram_of_past)
            first = tf.equal(tf.reduce_sum(past), 0)
            shares = tf.where(first, shares, (1 - momentum) * past + momentum * shares)
            shares = histogram_of_past.assign(shares, read_value=True)
        node = tf.clip_by_value(tf.cast(tf.floor(place), tf.int32), 0, bins)
        terms = tf.gather(tf.cumsum(shares), node) * differences
        return reduce_terms(terms, reduction, comparison)


def vicreg_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> tf.Tensor:
    """Pulls two views of each class together and keeps the dimensions spread and uncorrelated.

    Bardes, Ponce, LeCun: VICReg (arXiv 2105.04906), eq. 1-6: `invariance` times the mean squared
    difference of the views, plus per view `variance` times the mean of `max(0, 1 - sqrt(var +
    epsilon)) / 2` over the dimensions, plus `covariance` times the sum of squared covariances of
    different dimensions, divided by D. The views are the first two examples of each class; further
    ones, and classes with one, are not used. It uses no negatives: for unlabeled data, where each
    image is a class. With labels, `supervised_contrastive_loss` supersedes it.

    The value belongs to the batch, so it has no reduction; 0 with fewer than two pairs of views.
    """
    with tf.name_scope("vicreg_loss"):
        comparison = compare(labels, embeddings)
        views, paired = _two_views(comparison)
        weights = tf.cast(paired, views[0].dtype)[:, None]
        count = tf.reduce_sum(weights)
        width = tf.cast(tf.shape(views[0])[1], weights.dtype)
        difference = tf.reduce_sum(weights * (views[0] - views[1]) ** 2)
        value = invariance * tf.math.divide_no_nan(difference, count * width)
        for view in views:
            mean = tf.math.divide_no_nan(tf.reduce_sum(weights * view, axis=0), count)
            centered = weights * (view - mean)
            products = tf.matmul(centered, centered, transpose_a=True)
            covariances = tf.math.divide_no_nan(products, count - 1)
            variances = tf.linalg.diag_part(covariances)
            value += variance * mean_of(tf.nn.relu(1 - tf.sqrt(variances + epsilon)) / 2)
            others = tf.linalg.set_diag(covariances, tf.zeros_like(variances))
            value += covariance * tf.math.divide_no_nan(tf.reduce_sum(others**2), width)
        return reduce_terms(tf.where(count > 1, value, 0)[None], "sum", comparison)


def histogram(place: tf.Tensor, weights: tf.Tensor, bins: int) -> tf.Tensor:
    """`[bins + 1]`: weights `[T]`, each divided linearly between the nodes beside `place` `[T]`."""
    place = tf.clip_by_value(place, 0, bins)
    below = tf.minimum(tf.cast(tf.floor(tf.stop_gradient(place)), tf.int32), bins - 1)
    share = place - tf.cast(below, place.dtype)
    return tf.math.unsorted_segment_sum(
        weights * (1 - share), below, bins + 1
    ) + tf.math.unsorted_segment_sum(weights * share, below + 1, bins + 1)


def _two_views(comparison: Comparison) -> tuple[list[tf.Tensor], tf.Tensor]:
    """(`[B, D]` first and second example of each class, `[B]` bool whether there are both)."""
    codes, x = comparison.codes, comparison.embeddings
    count = tf.shape(codes)[0]  # at least the number of classes
    rows = tf.range(count)
    is_first = tf.equal(tf.gather(tf.math.unsorted_segment_min(rows, codes, count), codes), rows)
    second = tf.math.unsorted_segment_min(tf.where(is_first, count, rows), codes, count)
    is_second = tf.equal(tf.gather(second, codes), rows)
    views = [
        tf.math.unsorted_segment_sum(tf.where(mask[:, None], x, tf.zeros_like(x)), codes, count)
        for mask in (is_first, is_second)
    ]
    return views, second < count  # the minimum of nothing is the largest integer
