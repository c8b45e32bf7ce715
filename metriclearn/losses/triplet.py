"""Triplet loss."""

import inspect

import tensorflow as tf

from metriclearn.distances import DISTANCES
from metriclearn.losses.reductions import reduce_terms
from metriclearn.miners import MINERS
from metriclearn.pairs import compare, masks
from metriclearn.registry import resolve


def triplet_loss(
    labels,
    embeddings,
    *,
    margin=0.2,
    miner="batch_hard",
    distance="euclidean",
    soft_margin=False,
    reduction="mean",
    mining_dtype=None,
    references=None,
):
    """Pulls an anchor's positive nearer than its negative: `max(0, d(a, p) - d(a, n) + margin)`.

    Schroff, Kalenichenko, Philbin: FaceNet (arXiv 1503.03832), eq. 3; soft margin and batch-hard:
    Hermans, Beyer, Leibe (arXiv 1703.07737), eq. 5 and 7. Embeddings are taken as they are:
    normalise them yourself where the model should.

    Args:
        labels: `[B]` integers or strings. An anchor counts if it has a positive (the same label,
            itself excluded by index) and a negative.
        embeddings: `[B, D]` floating point; half precision is computed in float32.
        margin: of the hinge, in units of the distance; also handed to miners that have a margin.
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> (anchors, positives,
            negatives)` of `[T]` indices. It is given those of the options `distance`, `margin`,
            `references` and `mining_dtype` that its signature names.
        distance: a name in `DISTANCES` or a `Distance`.
        soft_margin: `log(1 + exp(d(a, p) - d(a, n)))` in place of the hinge; `margin` has no part
            in it.
        reduction: over the mined triplets: 'mean', 'nonzero_mean' (over those that are not 0, usual
            with 'batch_all'), 'sum', or 'none' for a `[T]` vector in the miner's order.
        mining_dtype: dtype of the product that ranks candidates; the distances of the loss itself
            are always computed from the embeddings as given.
        references: a `References` that positives and negatives come from; the batch when None.

    Returns:
        A scalar (or `[T]`). With no valid triplet exactly 0, with gradient 0.

    Raises:
        ValueError: an unknown name, or labels and embeddings that do not fit together.
    """
    with tf.name_scope("triplet_loss"):
        distance = resolve(distance, DISTANCES, "distance")
        comparison = compare(labels, embeddings, references)
        if miner == "batch_all":
            differences = _all_differences(comparison, distance)
        else:
            anchors, positives, negatives = _call(
                resolve(miner, MINERS, "miner"),
                (labels, embeddings),
                distance=distance,
                margin=margin,
                references=references,
                mining_dtype=mining_dtype,
            )
            to_positive, to_negative = comparison.distances(distance, anchors, positives, negatives)
            differences = to_positive - to_negative
        terms = tf.nn.softplus(differences) if soft_margin else tf.nn.relu(differences + margin)
        return reduce_terms(terms, reduction, comparison)


def _all_differences(comparison, distance):
    """`d(a, p) - d(a, n)` of all triplets, in the order of `mine_batch_all`.

    Read from the distance matrix, pair by pair: O(pairs x B), where gathering the embeddings of
    every triplet would take D times as much.
    """
    distances = distance.pairwise(comparison.embeddings, comparison.references)
    positive, negative = masks(comparison)
    pairs = tf.where(positive)
    anchors = pairs[:, 0]
    differences = tf.gather_nd(distances, pairs)[:, None] - tf.gather(distances, anchors)
    return tf.boolean_mask(differences, tf.gather(negative, anchors))


def _call(function, arguments, **options):
    """Calls `function` with those options that its signature names and `partial` has not bound."""
    bound = getattr(function, "keywords", {})
    accepted = inspect.signature(function).parameters
    return function(
        *arguments, **{k: v for k, v in options.items() if k in accepted and k not in bound}
    )
