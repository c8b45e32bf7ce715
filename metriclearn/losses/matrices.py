"""The `[B, M]` matrices that losses share, and sums over their masked entries."""

import tensorflow as tf

from metriclearn.distances import COSINE, DISTANCES, Distance
from metriclearn.inputs import TensorLike
from metriclearn.pairs import Comparison, References, compare, masks
from metriclearn.registry import resolve
from metriclearn.xla import compiling, refuse_xla


def measure(
    labels: TensorLike,
    embeddings: TensorLike,
    distance: str | Distance,
    references: References | None,
) -> tuple[Comparison, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(comparison, `[B, M]` positive mask, negative mask, distances)."""
    comparison = compare(labels, embeddings, references)
    metric = resolve(distance, DISTANCES, "distance")
    distances = metric.pairwise(comparison.embeddings, comparison.references)
    return comparison, *masks(comparison), distances


def cosines(
    labels: TensorLike, embeddings: TensorLike, references: References | None
) -> tuple[Comparison, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(comparison, `[B, M]` positive mask, negative mask, cosines)."""
    comparison, positive, negative, distances = measure(labels, embeddings, COSINE, references)
    return comparison, positive, negative, 1 - distances


def all_differences(
    comparison: Comparison, distances: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """(`[T]` d(a, p) - d(a, n) of all triplets, which of them are real: see `xla.real`).

    In the order of `mine_batch_all`, from the `[B, M]` distances: O(pairs M); gathering the
    embeddings of every triplet would take D times as much.
    """
    positive, negative = masks(comparison)
    if compiling():  # XLA fuses the cube into the following sums
        differences = distances[:, :, None] - distances[:, None]
        counted = positive[:, :, None] & negative[:, None]
        return tf.reshape(differences, [-1]), tf.reshape(counted, [-1])
    with tf.control_dependencies(refuse_xla(distances, "all_triplets_depend_on_data")):
        pairs = tf.where(positive)
    anchors = pairs[:, 0]
    differences = tf.gather_nd(distances, pairs)[:, None] - tf.gather(distances, anchors)
    return tf.boolean_mask(differences, tf.gather(negative, anchors)), None


def where(mask: tf.Tensor, values: tf.Tensor, otherwise: float) -> tf.Tensor:
    return tf.where(mask, values, tf.constant(otherwise, values.dtype))


def log_sum_exp(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`[B]`: the log of the sum of exponentials of each row's masked values; very small if none."""
    # A large finite number, not the dtype's lowest, which would overflow in sums.
    return tf.reduce_logsumexp(where(mask, values, values.dtype.min / 4), axis=1)


def masked_mean(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    count = tf.cast(tf.math.count_nonzero(mask, axis=1), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(where(mask, values, 0), axis=1), count)


def complete(positive: tf.Tensor, negative: tf.Tensor) -> tf.Tensor:
    """`[B]` bool: the anchors with both a positive and a negative."""
    return tf.reduce_any(positive, axis=1) & tf.reduce_any(negative, axis=1)


def of_complete(terms: tf.Tensor, positive: tf.Tensor, negative: tf.Tensor) -> tf.Tensor:
    return tf.boolean_mask(terms, complete(positive, negative))
