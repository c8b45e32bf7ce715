"""How mining and the embedding fare: figures for a trainer's summaries. No gradient passes."""

import tensorflow as tf

from metriclearn.distances import DISTANCES
from metriclearn.pairs import check_batch, compare
from metriclearn.registry import resolve


def triplet_statistics(
    labels, embeddings, triplets, *, margin=0.2, distance="euclidean", references=None
):
    """What was mined, in a dict of float scalars.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point.
        triplets: `Triplets`, or (anchors, positives, negatives).
        margin: the loss's margin, in units of the distance.
        distance: a name in `DISTANCES` or a `Distance`.
        references: what the triplets' positives and negatives index; the batch when None.

    Returns:
        'triplets': how many; 'active': the share with a loss above 0; 'hard': the share whose
        negative is nearer than the positive; 'anchor_positive', 'anchor_negative': mean distances.
        Shares and means are 0 where nothing was mined.
    """
    with tf.name_scope("triplet_statistics"):
        comparison = compare(labels, tf.stop_gradient(embeddings), references)
        distance = resolve(distance, DISTANCES, "distance")
        to_positive, to_negative = comparison.distances(distance, *triplets)

        def mean(values):
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


def hardest_triplet(embeddings, triplets, *, distance="euclidean"):
    """The triplet whose negative is nearest in comparison with its positive: one to look at.

    Args:
        embeddings: `[B, D]` floating point.
        triplets: `Triplets` of this batch, or (anchors, positives, negatives).
        distance: a name in `DISTANCES` or a `Distance`.

    Returns:
        Rows of anchor, positive and negative, `[3]` int32; three times row 0 without any triplet.
    """
    with tf.name_scope("hardest_triplet"):
        labels = tf.zeros(tf.shape(embeddings)[:1], tf.int32)
        comparison = compare(labels, tf.stop_gradient(embeddings))
        distance = resolve(distance, DISTANCES, "distance")
        to_positive, to_negative = comparison.distances(distance, *triplets)
        gap = tf.pad(to_positive - to_negative, [[0, 1]], constant_values=to_positive.dtype.min)
        rows = tf.pad(tf.stack([*triplets], axis=1), [[0, 1], [0, 0]])
        return tf.gather(rows, tf.argmax(gap))


def embedding_statistics(embeddings):
    """How the embeddings fill their space, in a dict of float scalars: a collapse shows here first.

    Args:
        embeddings: `[B, D]` floating point. Costs a singular value decomposition, O(B D min(B, D)):
            for steps that write summaries.

    Returns:
        'norm': mean length; 'spread': root of the mean squared distance to the mean embedding;
        'effective_rank': exp of the entropy of the normalised singular values of the centred
        embeddings (Roy, Vetterli: The Effective Rank, EUSIPCO 2007), between 1 and min(B, D), and 0
        where all embeddings are equal.
    """
    with tf.name_scope("embedding_statistics"):
        embeddings = tf.convert_to_tensor(embeddings)
        _, x = check_batch(tf.zeros(tf.shape(embeddings)[:1], tf.int32), embeddings)
        x = tf.stop_gradient(x)
        centred = x - tf.reduce_mean(x, axis=0)
        shares = tf.linalg.svd(centred, compute_uv=False)
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares))
        entropy = -tf.reduce_sum(tf.math.xlogy(shares, shares))
        collapsed = tf.reduce_sum(shares) <= 0
        return {
            "norm": tf.reduce_mean(tf.norm(x, axis=1)),
            "spread": tf.sqrt(tf.reduce_mean(tf.reduce_sum(centred**2, axis=1))),
            "effective_rank": tf.where(collapsed, tf.zeros_like(entropy), tf.exp(entropy)),
        }
