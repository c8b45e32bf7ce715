"""Triplet loss."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from metriclearn.distances import DISTANCES, Distance
from metriclearn.inputs import TensorLike
from metriclearn.losses.matrices import all_differences
from metriclearn.losses.reductions import reduce_terms
from metriclearn.miners import call_miner
from metriclearn.pairs import References, compare
from metriclearn.registry import resolve
from metriclearn.xla import real


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
            metric = resolve(distance, DISTANCES, "distance")
            distances = metric.pairwise(comparison.embeddings, comparison.references)
            differences, counted = all_differences(comparison, distances)
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
            differences, counted = to_positive - to_negative, real(triplets.anchors)
        terms = tf.nn.softplus(differences) if soft_margin else tf.nn.relu(differences + margin)
        return reduce_terms(terms, reduction, comparison, counted)
