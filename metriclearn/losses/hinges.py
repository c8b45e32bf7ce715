"""Losses in which pairs beyond a threshold have no loss.

Arguments, returns, errors and cost are described in `metriclearn.losses.pairwise`. `triplet_loss`
and `margin_loss`, which mine, are in other modules.
"""

from collections.abc import Callable

import tensorflow as tf

from metriclearn.distances import SQUARED, Distance, power_of_two
from metriclearn.inputs import TensorLike
from metriclearn.losses.matrices import cosines, measure, of_complete, where
from metriclearn.losses.reductions import mean_of, reduce_terms
from metriclearn.miners import mine_pairs
from metriclearn.pairs import Comparison, References, compare, masks
from metriclearn.xla import real


def contrastive_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    miner: str | Callable | None = None,
    distance: str | Distance = "euclidean",
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Pulls positives within one margin, pushes negatives beyond another, with equal weight.

    Hadsell, Chopra, LeCun: Dimensionality Reduction by Learning an Invariant Mapping (CVPR 2006),
    eq. 4, on the distance itself: positives `max(0, d - positive_margin)`, negatives
    `max(0, negative_margin - d)`. The paper squares both terms; `distance='squared'` does so for
    the positives.

    Args:
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> Pairs` or `Triplets`;
            None: all pairs.

    Terms: one per positive pair, then one per negative pair, row by row, or in the miner's order.
    The two kinds are reduced separately, and the results are added.
    """
    with tf.name_scope("contrastive_loss"):
        if miner is None:
            comparison, positive, negative, distances = measure(
                labels, embeddings, distance, references
            )
            kept = None, None
            near = tf.boolean_mask(distances, positive)
            far = tf.boolean_mask(distances, negative)
        else:
            comparison = compare(labels, embeddings, references)
            mined = mine_pairs(miner, labels, embeddings, distance=distance, references=references)
            near, far = comparison.pair_distances(distance, mined)
            kept = real(mined.positive_anchors), real(mined.negative_anchors)
        near, far = tf.nn.relu(near - positive_margin), tf.nn.relu(negative_margin - far)
        return _two_kinds(near, far, reduction, comparison, *kept)


def snr_contrastive_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Contrastive loss on the noise-to-signal ratio `var(a - x) / var(a)` of an anchor a.

    Yuan, Deng, Tang, Tang, Chen: Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric
    Learning (CVPR 2019), without its regularizer of the mean: `max(0, d - positive_margin)`
    and `max(0, negative_margin - d)`; var is over the dimensions. The distance is not symmetric,
    ignores a common offset and scale of the embeddings, and is 0 for an anchor whose elements are
    all equal. On normalized embeddings it is half the squared distance up to the rows' means:
    `contrastive_loss(distance='squared')` supersedes it there.

    Terms: one per positive pair, then one per negative pair, row by row. The two kinds are reduced
    separately, and the results are added.
    """
    with tf.name_scope("snr_contrastive_loss"):
        comparison = compare(labels, embeddings, references)
        x, y = comparison.embeddings, comparison.references
        # The ratio does not depend on scale; in these units squares neither overflow nor vanish.
        largest = [tf.reduce_max(tf.concat([tf.abs(tf.reshape(t, [-1])), [0]], 0)) for t in (x, y)]
        unit = power_of_two(tf.maximum(*largest))
        x, y = (t / unit - tf.reduce_mean(t / unit, axis=1, keepdims=True) for t in (x, y))
        noise = SQUARED.pairwise(x, x if references is None else y)
        ratio = tf.math.divide_no_nan(noise, tf.reduce_sum(x * x, axis=1, keepdims=True))
        near, far = (tf.boolean_mask(ratio, mask) for mask in masks(comparison))
        near, far = tf.nn.relu(near - positive_margin), tf.nn.relu(negative_margin - far)
        return _two_kinds(near, far, reduction, comparison)


def threshold_consistent_margin_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive_margin: float = 0.9,
    negative_margin: float = 0.5,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    reduction: str = "nonzero_mean",
    references: References | None = None,
) -> tf.Tensor:
    """Makes one cosine threshold suitable for all classes; a regularizer for another loss.

    Zhang et al.: Threshold-Consistent Margin Loss for Open-World Deep Metric Learning (arXiv
    2307.04047): `max(0, positive_margin - s_p)` and `max(0, s_n - negative_margin)`, each averaged
    over the pairs that violate it. With weights of 1 it is `contrastive_loss` on cosine distance
    with margins 1 - m and 'nonzero_mean'.

    Terms: one per positive pair, then one per negative pair, row by row. The two kinds are reduced
    separately, and the results are added.
    """
    with tf.name_scope("threshold_consistent_margin_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        near = positive_weight * tf.nn.relu(positive_margin - tf.boolean_mask(s, positive))
        far = negative_weight * tf.nn.relu(tf.boolean_mask(s, negative) - negative_margin)
        return _two_kinds(near, far, reduction, comparison)


def intra_pair_variance_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive_epsilon: float = 0.01,
    negative_epsilon: float = 0.01,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Moves cosines of positive pairs below their mean up to it, and of negatives above it down.

    Yu, Tao: Deep Metric Learning with Tuplet Margin Loss (ICCV 2019): `max(0, (1 -
    epsilon) mean s_p - s_p)^2` and `max(0, s_n - (1 + epsilon) mean s_n)^2`; a regularizer that the
    paper adds to `tuplet_margin_loss`.

    Terms: one per positive pair, then one per negative pair, row by row. The two kinds are reduced
    separately, and the results are added.
    """
    with tf.name_scope("intra_pair_variance_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        near, far = tf.boolean_mask(s, positive), tf.boolean_mask(s, negative)
        near = tf.nn.relu((1 - positive_epsilon) * mean_of(near) - near) ** 2
        far = tf.nn.relu(far - (1 + negative_epsilon) * mean_of(far)) ** 2
        return _two_kinds(near, far, reduction, comparison)


def ranked_list_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    margin: float = 0.4,
    boundary: float = 1.2,
    positive_temperature: float = 0.0,
    negative_temperature: float = 10.0,
    imbalance: float = 0.5,
    smoothing: float = 1e-5,
    distance: str | Distance = "euclidean",
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Pulls positives within `boundary - margin`, and pushes weighted negatives beyond `boundary`.

    Wang, Hua, Kodirov, Hu, Garnier, Robertson: Ranked List Loss for Deep Metric Learning (arXiv
    1903.03238): the weighted means of `d_p - (boundary - margin)` over the positives
    beyond, and of `boundary - d_n` over the negatives within, added with weights `1 - imbalance`
    and `imbalance`. A pair weighs exp(temperature x its violation). The paper normalizes the
    embeddings. `multi_similarity_loss` weighs the same way on cosines, without a fixed boundary.

    Args:
        smoothing: added to each candidate's weight in the denominator of the weighted means.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("ranked_list_loss"):
        comparison, positive, negative, distances = measure(
            labels, embeddings, distance, references
        )

        def weighted_mean(mask: tf.Tensor, violation: tf.Tensor, temperature: float) -> tf.Tensor:
            mask &= violation > 0
            logits = where(mask, temperature * violation, 0)
            # In units of the largest weight, so that weights do not overflow.
            highest = tf.stop_gradient(tf.reduce_max(logits, axis=1, keepdims=True))
            weights = where(mask, tf.exp(logits - highest), 0)
            total = tf.reduce_sum(weights + smoothing * tf.exp(-highest), axis=1)
            weighted = tf.reduce_sum(where(mask, weights * violation, 0), axis=1)
            return tf.math.divide_no_nan(weighted, total)

        inner = boundary - margin
        terms = (1 - imbalance) * weighted_mean(positive, distances - inner, positive_temperature)
        terms += imbalance * weighted_mean(negative, boundary - distances, negative_temperature)
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def _two_kinds(
    near: tf.Tensor,
    far: tf.Tensor,
    reduction: str,
    comparison: Comparison,
    *kept: tf.Tensor | None,
) -> tf.Tensor:
    """Terms of positive and of negative pairs, `[P]` and `[N]`, reduced separately and added."""
    if reduction == "none":
        return reduce_terms(tf.concat([near, far], 0), reduction, comparison)
    one, other = kept or (None, None)
    return reduce_terms(near, reduction, comparison, one) + reduce_terms(
        far, reduction, comparison, other
    )
