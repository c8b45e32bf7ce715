"""Triplet loss."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from metriclearn.distances import DISTANCES, Distance
from metriclearn.inputs import TensorLike, refuse_xla
from metriclearn.losses.reductions import reduce_terms
from metriclearn.miners import call_miner
from metriclearn.pairs import Comparison, References, compare, masks
from metriclearn.registry import resolve


def triplet_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    margin: float = 0.2,
    miner: str | Callable = "batch_hard",
    distance: str | Distance = "euclidean",
    soft_margin: bool = False,
    reduction: str = "mean",
    mining_dtype: Any = None,
    references: References | None = None,
) -> tf.Tensor:
    """Pulls an anchor's positive nearer than its negative: `max(0, d(a, p) - d(a, n) + margin)`.

    Schroff, Kalenichenko, Philbin: FaceNet (arXiv 1503.03832), eq. 3; soft margin and batch-hard:
    Hermans, Beyer, Leibe (arXiv 1703.07737), eq. 5 and 7. Embeddings are used as they are:
    normalize them in the model if it should.

    Args:
        labels: `[B]`, see `metriclearn.inputs`. An anchor counts if it has a positive (the same
            label, itself excluded by index) and a negative.
        embeddings: `[B, D]` floating point; half precision is computed in float32.
        margin: of the hinge, in units of the distance; also passed to miners that have a margin.
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> (anchors, positives,
            negatives)` of `[T]` indices. Of the options `distance`, `margin`, `references` and
            `mining_dtype` it receives those that its signature names.
        distance: a name in `DISTANCES` or a `Distance`.
        soft_margin: `log(1 + exp(d(a, p) - d(a, n)))` instead of the hinge, without its margin.
        reduction: over the mined triplets: 'mean', 'nonzero_mean' (over those that are not 0, usual
            with 'batch_all'), 'sum', or 'none' for a `[T]` vector in the miner's order.
        mining_dtype: dtype of the product that ranks candidates. The distances of the loss itself
            are always computed from the embeddings as given.
        references: a `References` that positives and negatives come from; the batch if None.

    Returns:
        A scalar (or `[T]`). With no valid triplet exactly 0, with gradient 0.

    Raises:
        ValueError: an unknown name; labels and embeddings that do not fit together; `references` or
            `mining_dtype` with a miner that cannot use them.
    """
    with tf.name_scope("triplet_loss"):
        comparison = compare(labels, embeddings, references)
        if miner == "batch_all" and mining_dtype is None:
            differences = _all_differences(comparison, distance)
        else:
            triplets = call_miner(
                miner,
                labels,
                embeddings,
                distance=distance,
                margin=margin,
                references=references,
                mining_dtype=mining_dtype,
            )
            to_positive, to_negative = comparison.distances(distance, *triplets)
            differences = to_positive - to_negative
        terms = tf.nn.softplus(differences) if soft_margin else tf.nn.relu(differences + margin)
        return reduce_terms(terms, reduction, comparison)


def _all_differences(comparison: Comparison, distance: str | Distance) -> tf.Tensor:
    """`d(a, p) - d(a, n)` of all triplets, in the order of `mine_batch_all`.

    Read from the distance matrix, pair by pair: O(pairs x B), where gathering the embeddings of
    every triplet would take D times as much.
    """
    metric = resolve(distance, DISTANCES, "distance")
    distances = metric.pairwise(comparison.embeddings, comparison.references)
    positive, negative = masks(comparison)
    with tf.control_dependencies(refuse_xla(distances, "batch_all_has_shapes_that_depend_on_data")):
        pairs = tf.where(positive)
    anchors = pairs[:, 0]
    differences = tf.gather_nd(distances, pairs)[:, None] - tf.gather(distances, anchors)
    return tf.boolean_mask(differences, tf.gather(negative, anchors))
