"""What miners return."""

from typing import NamedTuple

import tensorflow as tf


class Triplets(NamedTuple):
    """Row indices of T triplets, each `[T]` int32.

    Attributes:
        anchors: rows of the batch.
        positives: rows of the references (of the batch, unless the miner was given references).
        negatives: rows of the references.
    """

    anchors: tf.Tensor
    positives: tf.Tensor
    negatives: tf.Tensor


class Pairs(NamedTuple):
    """Row indices of P positive and N negative pairs, int32.

    Attributes:
        positive_anchors, positives: `[P]`, rows of the batch and of the references.
        negative_anchors, negatives: `[N]`, likewise.
    """

    positive_anchors: tf.Tensor
    positives: tf.Tensor
    negative_anchors: tf.Tensor
    negatives: tf.Tensor

    def triplets(self) -> Triplets:
        """Each positive pair with each negative pair of the same anchor, in their order."""
        same = tf.equal(self.positive_anchors[:, None], self.negative_anchors)
        p, n = tf.unstack(tf.where(same), num=2, axis=1)
        return Triplets(
            tf.gather(self.positive_anchors, p),
            tf.gather(self.positives, p),
            tf.gather(self.negatives, n),
        )
