"""Losses that smooth a retrieval metric: every embedding searches the rest of the batch.

Arguments, returns and errors are described in `metriclearn.losses.pairwise`. Smooth-AP and the
recall
surrogate compare candidates with each other: O(pairs M) time and memory, which suits P x K batches.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from metriclearn.inputs import TensorLike
from metriclearn.losses.matrices import cosines, of_complete
from metriclearn.losses.reductions import reduce_terms
from metriclearn.pairs import References, themselves
from metriclearn.registry import resolve


def smooth_ap_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    temperature: float = 0.01,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """1 - average precision by cosine, with the step of each rank replaced by a sigmoid.

    Brown, Xie, Kalogeiton, Zisserman: Smooth-AP: Smoothing the Path Towards Large-Scale Image
    Retrieval (arXiv 2007.12163), eq. 7: AP = mean over positives p of (1 + sum over other positives
    q of G(s_q - s_p)) / (1 + the same sum over all others), G(x) = 1 / (1 + exp(-x / temperature)).

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("smooth_ap_loss"):
        comparison, positive, negative, similarity = cosines(labels, embeddings, references)
        pairs, above = _softly_above(similarity, positive, temperature)
        # This includes the positive itself with G(0) = 1/2, which is subtracted.
        among_positives = _sum_where(tf.gather(positive, pairs[:, 0]), above) - 0.5
        among_negatives = _sum_where(tf.gather(negative, pairs[:, 0]), above)
        precision = (1 + among_positives) / (1 + among_positives + among_negatives)
        terms = _mean_over_pairs(1 - precision, pairs, positive)
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def recall_at_k_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    ks: Sequence[int] = (1, 2, 4),
    temperature: float = 0.01,
    rank_temperature: float = 1.0,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """1 - recall@k by cosine, with sigmoids for both steps, averaged over several k.

    After Patel, Tolias, Matas: Recall@k Surrogate Loss with Large Batches and Similarity Mixup
    (arXiv 2108.11179), eq. 6: the sum over the anchor's positives p of
    `sigmoid((k - rank(p)) / rank_temperature)`, where rank(p) = 1 + the sum over all others z of
    `sigmoid((s_z - s_p) / temperature)`, divided by min(k, number of positives).

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("recall_at_k_loss"):
        comparison, positive, negative, similarity = cosines(labels, embeddings, references)
        pairs, above = _softly_above(similarity, positive, temperature)
        # 1 + ..., minus the 1/2 of the positive itself.
        rank = 0.5 + _sum_where(tf.gather(positive | negative, pairs[:, 0]), above)
        count = tf.cast(tf.math.count_nonzero(positive, axis=1), rank.dtype)
        rows = tf.shape(positive)[0]
        terms = tf.zeros_like(count)
        for k in ks:
            within = tf.sigmoid((k - rank) / rank_temperature)
            found = tf.math.unsorted_segment_sum(within, pairs[:, 0], rows)
            terms += 1 - tf.math.divide_no_nan(found, tf.minimum(count, k))
        terms = of_complete(terms / len(ks), positive, negative)
        return reduce_terms(terms, reduction, comparison)


def pnp_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    variant: str = "O",
    alpha: float = 1.0,
    b: float = 2.0,
    temperature: float = 0.01,
    count_query: bool = False,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Penalizes negatives ranked above each positive; the order of positives does not matter.

    Li, Min, Song et al.: Rethinking the Optimization of Average Precision: Only Penalizing Negative
    Instances before Positive Ones is Enough (arXiv 2102.04640), on cosines s: the mean over an
    anchor's positives of f(R), R = sum_n sigmoid((s_n - s_p) / temperature). f by `variant`, as
    the paper names them: 'O' R; 'Ds' log(1 + R); 'Dq' 1 - (1 + R)^-alpha; 'Iu' (1 + R) log(1 + R);
    'Ib' (b R - log(1 + b R)) / b^2. In 'Ds' and 'Dq' the gradient of a positive decreases with the
    number of negatives above it.

    Args:
        count_query: count the anchor itself among its positives, as pytorch-metric-learning does.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("pnp_loss"):
        comparison, positive, negative, similarity = cosines(labels, embeddings, references)
        counted = positive | themselves(comparison) if count_query else positive
        pairs, above = _softly_above(similarity, counted, temperature)
        before = _sum_where(tf.gather(negative, pairs[:, 0]), above)
        value = resolve(variant, _PNP_VARIANTS, "variant")(before, alpha, b)
        terms = _mean_over_pairs(value, pairs, counted)
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


_PNP_VARIANTS = {
    "O": lambda rank, alpha, b: rank,
    "Ds": lambda rank, alpha, b: tf.math.log1p(rank),
    "Dq": lambda rank, alpha, b: 1 - (1 + rank) ** -alpha,
    "Iu": lambda rank, alpha, b: (1 + rank) * tf.math.log1p(rank),
    "Ib": lambda rank, alpha, b: (b * rank - tf.math.log1p(b * rank)) / b**2,
}


def fast_ap_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    bins: int = 10,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """1 - average precision from soft histograms of the distances; O(B M bins).

    Cakir, He, Xia, Kulis, Sclaroff: Deep Metric Learning to Rank (CVPR 2019), eq. 8 on the squared
    Euclidean distance of the normalized embeddings, which lies in [0, 4]: AP = 1 / P sum_j h_j+
    H_j+ / H_j, where h and H are the histogram and its running sum. Each distance is divided
    linearly between the two nearest of `bins` + 1 centers.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("fast_ap_loss"):
        comparison, positive, negative, similarity = cosines(labels, embeddings, references)
        width = 4 / bins
        centers = tf.constant(np.linspace(0, 4, bins + 1), similarity.dtype)
        pulse = tf.nn.relu(1 - tf.abs(2 - 2 * similarity[..., None] - centers) / width)
        hits = tf.reduce_sum(tf.where(positive[..., None], pulse, 0), axis=1)
        misses = tf.reduce_sum(tf.where(negative[..., None], pulse, 0), axis=1)
        hits_so_far = tf.cumsum(hits, axis=1)
        seen = hits_so_far + tf.cumsum(misses, axis=1)
        total = tf.cast(tf.math.count_nonzero(positive, axis=1), hits.dtype)
        precision = tf.math.divide_no_nan(hits * hits_so_far, seen)
        terms = 1 - tf.math.divide_no_nan(tf.reduce_sum(precision, axis=1), total)
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def _softly_above(
    similarity: tf.Tensor, positive: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """All positive pairs `[T, 2]`, and `[T, M]` how much each candidate is above the positive."""
    pairs = tf.where(positive)
    own = tf.gather_nd(similarity, pairs)[:, None]
    return pairs, tf.sigmoid((tf.gather(similarity, pairs[:, 0]) - own) / temperature)


def _sum_where(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(mask, values, 0), axis=1)


def _mean_over_pairs(terms: tf.Tensor, pairs: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """`[B]`: the mean of each anchor's pairs, which are those of the mask `counted`."""
    total = tf.math.unsorted_segment_sum(terms, pairs[:, 0], tf.shape(counted)[0])
    count = tf.cast(tf.math.count_nonzero(counted, axis=1), terms.dtype)
    return tf.math.divide_no_nan(total, count)
