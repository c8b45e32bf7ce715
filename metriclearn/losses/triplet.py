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
    """Moves an anchor's positive nearer than its negative: `max(0, d(a, p) - d(a, n) + margin)`.

    Schroff, Kalenichenko, Philbin: FaceNet (arXiv 1503.03832), eq. 3; soft margin and batch-hard:
    Hermans, Beyer, Leibe (arXiv 1703.07737), eq. 5 and 7. Embeddings are used as given: normalize
    them in the model if needed.

    Args:
        labels: `[B]`, see `metriclearn.inputs`. An anchor counts if it has a positive (the same
            label, itself excluded by index) and a negative.
        embeddings: `[B, D]` floating point; half precision is computed in float32.
        margin: margin of the hinge, in units of the distance; also passed to miners with a margin.
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> (anchors, positives,
            negatives)` of `[T]` indices. It gets the options `distance`, `margin`, `references` and
            `mining_dtype` that are in its signature.
        distance: a name in `DISTANCES` or a `Distance`.
        soft_margin: `log(1 + exp(d(a, p) - d(a, n)))` instead of the hinge, without its margin.
        reduction: over the mined triplets: 'mean', 'nonzero_mean' (over nonzero terms, usual with
            'batch_all'), 'sum', or 'none' for a `[T]` vector in the miner's order.
        mining_dtype: dtype of the product that ranks candidates. The loss always computes its
            distances from the embeddings as given.
        references: `References` with the positives and negatives; None: the batch.

    Returns:
        A scalar (or `[T]`), exactly 0 with gradient 0 if there is no valid triplet.

    Raises:
        ValueError: a name is unknown; labels and embeddings do not fit together; or the miner does
            not support `references` or `mining_dtype`.
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
