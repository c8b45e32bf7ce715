"""Statistics of mining and embeddings for summaries, without gradients."""

import tensorflow as tf

from metriclearn.distances import Distance
from metriclearn.inputs import TensorLike, float_matrix
from metriclearn.miners import Triplets
from metriclearn.pairs import References, compare


def triplet_statistics(
    labels: TensorLike,
    embeddings: TensorLike,
    triplets: Triplets | tuple,
    *,
    margin: float = 0.2,
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> dict[str, tf.Tensor]:
    """Describes mined triplets in a dict of float scalars.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        triplets: `Triplets`, or (anchors, positives, negatives).
        margin: the loss's margin, in units of the distance.
        distance: a name in `DISTANCES` or a `Distance`.
        references: the references of the triplets' positives and negatives; None: the batch.

    Returns:
        'triplets': their number; 'active': the fraction with a loss above 0; 'hard': the fraction
        whose negative is nearer than the positive; 'anchor_positive', 'anchor_negative': mean
        distances. Fractions and means are 0 if nothing was mined.
    """
    with tf.name_scope("triplet_statistics"):
        comparison = compare(labels, tf.stop_gradient(embeddings), references)
        to_positive, to_negative = comparison.distances(distance, *triplets)

        def mean(values: tf.Tensor) -> tf.Tensor:
            values = tf.cast(values, to_positive.dtype)
            count = tf.cast(tf.size(values), values.dtype)
            return tf.math.divide_no_nan(tf.reduce_sum(values), count)

        return {
            "triplets": tf.cast(tf.size(to_positive), to_positive.dtype),
            "active": mean(to_positive - to_negative + margin > 0),
            "hard": mean(to_negative < to_positive),
            "anchor_positive": mean(to_positive),
            "anchor_negative": mean(to_negative),
        }


def hardest_triplet(
    embeddings: TensorLike, triplets: Triplets | tuple, *, distance: str | Distance = "euclidean"
) -> tf.Tensor:
    """Returns the triplet whose negative is nearest relative to its positive, for inspection.

    Args:
        embeddings: `[B, D]` floating point.
        triplets: `Triplets` of this batch, or (anchors, positives, negatives).
        distance: a name in `DISTANCES` or a `Distance`.

    Returns:
        Rows of anchor, positive and negative, `[3]` int32; three times row 0 without triplets.
    """
    with tf.name_scope("hardest_triplet"):
        labels = tf.zeros(tf.shape(embeddings)[:1], tf.int32)
        comparison = compare(labels, tf.stop_gradient(embeddings))
        to_positive, to_negative = comparison.distances(distance, *triplets)
        gap = tf.pad(to_positive - to_negative, [[0, 1]], constant_values=to_positive.dtype.min)
        rows = tf.pad(tf.stack([*triplets], axis=1), [[0, 1], [0, 0]])
        return tf.gather(rows, tf.argmax(gap))


def embedding_statistics(embeddings: TensorLike) -> dict[str, tf.Tensor]:
    """Describes the distribution of embeddings in a dict of float scalars; shows a collapse early.

    Costs a singular value decomposition, O(B D min(B, D)): call it on steps that write summaries.

    Args:
        embeddings: `[B, D]` floating point.

    Returns:
        'norm': mean length; 'spread': root of the mean squared distance to the mean embedding;
        'effective_rank': exp of the entropy of the normalized singular values of the centered
        embeddings (Roy, Vetterli: The Effective Rank, EUSIPCO 2007), between 1 and min(B, D), or 0
        if all embeddings are equal.
    """
    with tf.name_scope("embedding_statistics"):
        x = tf.stop_gradient(float_matrix(embeddings))
        centered = x - tf.reduce_mean(x, axis=0)
        shares = tf.linalg.svd(centered, compute_uv=False)
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares))
        entropy = -tf.reduce_sum(tf.math.xlogy(shares, shares))
        collapsed = tf.reduce_sum(shares) <= 0
        return {
            "norm": tf.reduce_mean(tf.norm(x, axis=1)),
            "spread": tf.sqrt(tf.reduce_mean(tf.reduce_sum(centered**2, axis=1))),
            "effective_rank": tf.where(collapsed, tf.zeros_like(entropy), tf.exp(entropy)),
        }
