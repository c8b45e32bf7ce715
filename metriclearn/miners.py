"""Miners: which triplets of a batch a loss should look at.

A miner is a function `(labels [B], embeddings [B, D], ...) -> Triplets`, or its name in `MINERS`.
It returns indices only, so it carries no gradient. Ties are broken by the lowest index.
"""

from typing import NamedTuple

import tensorflow as tf

from metriclearn.distances import DISTANCES
from metriclearn.pairs import compare, masks, scan_rows, valid_anchors
from metriclearn.registry import resolve


class Triplets(NamedTuple):
    """Row indices of T triplets, each `[T]` int32.

    Attributes:
        anchors: rows of the batch.
        positives: rows of the references (the batch itself unless the miner was given others).
        negatives: rows of the references.
    """

    anchors: tf.Tensor
    positives: tf.Tensor
    negatives: tf.Tensor


def mine_batch_hard(
    labels, embeddings, *, distance="euclidean", references=None, mining_dtype=None
):
    """For each anchor its farthest positive and its nearest negative.

    Hermans, Beyer, Leibe: In Defense of the Triplet Loss (arXiv 1703.07737), eq. 5.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point.
        distance: a name in `DISTANCES` or a `Distance`.
        references: a `References` to mine in; the batch itself when None.
        mining_dtype: dtype of the matrix product that ranks the candidates, such as `tf.bfloat16`.

    Returns:
        `Triplets`, one for each anchor that has a positive and a negative, in the order of anchors.

    Raises:
        ValueError: unknown distance, or labels and embeddings that do not fit together.
    """
    with tf.name_scope("mine_batch_hard"):
        comparison = compare(labels, embeddings, references)

        def select(nearness, positive, negative):
            return best(-nearness, positive), best(nearness, negative)

        positives, negatives = scan_rows(
            select,
            (tf.int32, tf.int32),
            comparison,
            resolve(distance, DISTANCES, "distance"),
            mining_dtype,
        )
        return _of_anchors(valid_anchors(comparison), positives, negatives)


def mine_batch_all(labels, embeddings, *, references=None):
    """Every triplet of the batch, ordered by anchor, positive, negative. T is up to B^3 / 4.

    Schroff et al. (arXiv 1503.03832) and Hermans et al. (arXiv 1703.07737), eq. 7.
    """
    with tf.name_scope("mine_batch_all"):
        positive, negative = masks(compare(labels, embeddings, references))
        anchors, positives = tf.unstack(tf.cast(tf.where(positive), tf.int32), num=2, axis=1)
        rows, negatives = tf.unstack(
            tf.cast(tf.where(tf.gather(negative, anchors)), tf.int32), num=2, axis=1
        )
        return Triplets(tf.gather(anchors, rows), tf.gather(positives, rows), negatives)


def best(scores, mask):
    """`[b]` int32: the column of the highest score within the mask, the lowest one among equals."""
    # top_k(1) and not argmax: the same answer, and the CPU kernel is vectorised. Masked entries
    # take the dtype's lowest value; infinity would alarm tf.debugging.enable_check_numerics.
    return tf.math.top_k(tf.where(mask, scores, scores.dtype.min), 1).indices[:, 0]


def _of_anchors(valid, positives, negatives):
    anchors = tf.cast(tf.where(valid)[:, 0], tf.int32)
    return Triplets(anchors, tf.gather(positives, anchors), tf.gather(negatives, anchors))


MINERS = {"batch_hard": mine_batch_hard, "batch_all": mine_batch_all}
