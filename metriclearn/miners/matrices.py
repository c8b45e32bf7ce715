"""Miners that see all pairs of the batch at once: O(B M) memory, besides what they return."""

import math
from collections.abc import Callable

import tensorflow as tf

from metriclearn.distances import DISTANCES, SQUARED, Distance
from metriclearn.equal_rows import distinct_rows
from metriclearn.inputs import TensorLike
from metriclearn.miners.results import Pairs, Triplets
from metriclearn.pairs import (
    Comparison,
    References,
    compare,
    informative_pairs,
    masks,
)
from metriclearn.registry import resolve
from metriclearn.xla import refuse_xla


def mine_batch_all(
    labels: TensorLike, embeddings: TensorLike, *, references: References | None = None
) -> Triplets:
    """Returns every triplet of the batch, ordered by anchor, positive, negative.

    Hermans, Beyer, Leibe (arXiv 1703.07737), eq. 7. T is up to B^3 / 4.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        references: a `References` to take positives and negatives from; the batch if None.
    """
    with tf.name_scope("mine_batch_all"):
        comparison = compare(labels, embeddings, references)
        positive, negative = masks(comparison)
        refused = refuse_xla(comparison.codes, "mining_has_shapes_that_depend_on_data")
        with tf.control_dependencies(refused):
            pairs = tf.where(positive)
        return _triplets_of(pairs, tf.gather(negative, pairs[:, 0]))


def mine_triplet_margin(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    margin: float = 0.2,
    kind: str = "all",
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> Triplets:
    """Returns all triplets of a kind, by the slack `d(a, n) - d(a, p)`.

    The strategies of FaceNet (arXiv 1503.03832), as pytorch-metric-learning's `TripletMarginMiner`.
    `mine_semi_hard` takes only the nearest of the semi-hard negatives and supersedes that kind.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        margin: in units of the distance.
        kind: 'all', slack at most the margin; of these 'hard', slack at most 0, and 'semi_hard',
            slack above 0; 'easy', slack above the margin.
        distance, references: see the package.

    Returns:
        `Triplets`, ordered by anchor, positive, negative. T is up to B^3 / 4.
    """
    kept = resolve(kind, _KINDS, "kind")
    with tf.name_scope("mine_triplet_margin"):
        comparison = compare(labels, embeddings, references)
        distances = distance_matrix(comparison, distance)
        positive, negative = masks(comparison)
        pairs = tf.where(positive)
        slack = tf.gather(distances, pairs[:, 0]) - tf.gather_nd(distances, pairs)[:, None]
        return _triplets_of(pairs, tf.gather(negative, pairs[:, 0]) & kept(slack, margin))


_KINDS: dict[str, Callable[[tf.Tensor, float], tf.Tensor]] = {
    "all": lambda slack, margin: slack <= margin,
    "hard": lambda slack, margin: slack <= min(margin, 0),
    "semi_hard": lambda slack, margin: (slack > 0) & (slack <= margin),
    "easy": lambda slack, margin: slack > margin,
}


def mine_angular(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    angle: float = 20.0,
    references: References | None = None,
) -> Triplets:
    """Returns the triplets whose negative sees the positive pair under more than an angle.

    Wang, Zhou, Wen, Liu, Lin: Deep Metric Learning with Angular Loss (arXiv 1708.01682): with c the
    middle of a and p, `atan(|a - p| / (2 |n - c|)) > angle`. Made for `angular_loss`; otherwise
    `mine_semi_hard` returns far fewer triplets and supersedes it.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        angle: in degrees, 0 to 90.
        references: see the package.

    Returns:
        `Triplets`, ordered by anchor, positive, negative. T is up to B^3 / 4.
    """
    with tf.name_scope("mine_angular"):
        comparison = compare(labels, embeddings, references)
        squares = distance_matrix(comparison, SQUARED)
        others = tf.stop_gradient(comparison.references)
        among = squares if references is None else SQUARED.pairwise(others, others)
        positive, negative = masks(comparison)
        pairs = tf.where(positive)
        # The median of a triangle: 4 |n - c|^2 = 2 |n - a|^2 + 2 |n - p|^2 - |a - p|^2.
        to_ends = tf.gather(squares, pairs[:, 0]) + tf.gather(among, pairs[:, 1])
        side = tf.gather_nd(squares, pairs)[:, None]
        wide = side > math.tan(math.radians(angle)) ** 2 * (2 * to_ends - side)
        return _triplets_of(pairs, tf.gather(negative, pairs[:, 0]) & wide)


def mine_batch_easy_hard(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive: str = "easy",
    negative: str = "semi_hard",
    positive_range: tuple[float, float] | None = None,
    negative_range: tuple[float, float] | None = None,
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> Triplets:
    """Returns, for each anchor, positives and negatives that are each chosen by a strategy.

    Xuan, Stylianou, Pless: Improved Embeddings with Easy Positive Triplet Mining (arXiv
    1904.04370). `mine_batch_hard` and `mine_easy_positive` do the usual combinations in blocks of
    rows and supersede it there.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        positive: 'easy', the nearest; 'hard', the farthest; 'semi_hard', the farthest that is
            nearer than the chosen negative; 'all'.
        negative: 'easy', the farthest; 'hard', the nearest; 'semi_hard', the nearest that is
            farther than the chosen positive; 'all'.
        positive_range, negative_range: the least and the largest distance that may be chosen.
        distance, references: see the package.

    Returns:
        `Triplets`, all combinations of an anchor's choices, ordered by anchor, positive, negative.

    Raises:
        ValueError: an unknown strategy, or 'semi_hard' beside 'semi_hard' or 'all', which leaves
            nothing to compare with.
    """
    strategies = {name: name for name in ("easy", "hard", "semi_hard", "all")}
    chosen = [resolve(s, strategies, "strategy") for s in (positive, negative)]
    if "semi_hard" in chosen and {"semi_hard", "all"} >= set(chosen):
        raise ValueError(f"positive={positive!r} cannot be combined with negative={negative!r}")
    with tf.name_scope("mine_batch_easy_hard"):
        comparison = compare(labels, embeddings, references)
        d = distance_matrix(comparison, distance)
        positives, negatives = masks(comparison)
        if positive_range is not None:
            positives &= (d >= positive_range[0]) & (d <= positive_range[1])
        if negative_range is not None:
            negatives &= (d >= negative_range[0]) & (d <= negative_range[1])
        # Where one is chosen relative to the other, the other is chosen first.
        if positive == "semi_hard":
            negatives = _choose(negatives, d, negative == "easy")
            positives = _choose(positives & (d < _only(negatives, d)), d, True)
        else:
            if positive != "all":
                positives = _choose(positives, d, positive == "hard")
            if negative == "semi_hard":
                negatives &= d > _only(positives, d)
            if negative != "all":
                negatives = _choose(negatives, d, negative == "easy")
        pairs = tf.where(positives)
        return _triplets_of(pairs, tf.gather(negatives, pairs[:, 0]))


def _choose(mask: tf.Tensor, distances: tf.Tensor, farthest: bool) -> tf.Tensor:
    """The mask with one entry per row: the farthest or nearest; of equals, the first."""
    scores = tf.where(mask, distances if farthest else -distances, distances.dtype.min)
    best = mask & tf.equal(scores, tf.reduce_max(scores, axis=1, keepdims=True))
    return best & tf.equal(tf.cumsum(tf.cast(best, tf.int32), axis=1), 1)


def _only(mask: tf.Tensor, distances: tf.Tensor) -> tf.Tensor:
    """`[B, 1]`: the distance of the one entry of each row of the mask; anything if none."""
    return tf.reduce_max(tf.where(mask, distances, distances.dtype.min), axis=1, keepdims=True)


def mine_pair_margin(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive_margin: float = 0.2,
    negative_margin: float = 0.8,
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> Pairs:
    """Returns the positive pairs beyond one margin and the negative pairs within another.

    A `contrastive_loss` with these margins is 0 on all others: its reduction 'nonzero_mean'
    supersedes this miner there.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        positive_margin, negative_margin: in units of the distance.
        distance, references: see the package.
    """
    with tf.name_scope("mine_pair_margin"):
        comparison = compare(labels, embeddings, references)
        distances = distance_matrix(comparison, distance)
        positive, negative = masks(comparison)
        return _pairs_where(
            positive & (distances > positive_margin), negative & (distances < negative_margin)
        )


def mine_hdc(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    share: float = 0.5,
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> Pairs:
    """Returns the hardest share of the batch's positive pairs and of its negative pairs.

    Yuan, Yang, Zhang: Hard-Aware Deeply Cascaded Embedding (arXiv 1611.05720), where each model of
    a cascade passes its hardest pairs to the next.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        share: 0 to 1; rounded up to whole pairs.
        distance, references: see the package.

    Returns:
        `Pairs`, hardest first: farthest positives, nearest negatives.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be from 0 to 1")
    with tf.name_scope("mine_hdc"):
        comparison = compare(labels, embeddings, references)
        distances = distance_matrix(comparison, distance)
        hardest = []
        for mask, hardness in zip(masks(comparison), (distances, -distances), strict=True):
            pairs = tf.where(mask)
            count = tf.cast(tf.shape(pairs)[0], tf.float64)
            kept = tf.cast(tf.math.ceil(share * count), tf.int32)
            places = tf.math.top_k(tf.gather_nd(hardness, pairs), kept).indices
            hardest += pairs_of(tf.gather(pairs, places))
        return Pairs(*hardest)


def mine_multi_similarity(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    epsilon: float = 0.1,
    references: References | None = None,
) -> Pairs:
    """Returns the pairs that overlap with the anchor's pairs of the other kind, by cosine.

    Wang, Han, Huang, Dong, Scott: Multi-Similarity Loss with General Pair Weighting (arXiv
    1904.06627), eq. 6-7; `multi_similarity_loss` has it built in. Negatives with `s_n + epsilon >
    min s_p` and positives with `s_p - epsilon < max s_n`, s the cosine.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        epsilon: width of the overlap, in units of cosine.
        references: see the package.

    Returns:
        `Pairs` of anchors that have a positive and a negative, ordered by anchor.
    """
    with tf.name_scope("mine_multi_similarity"):
        comparison = compare(labels, embeddings, references)
        similarity = 1 - distance_matrix(comparison, "cosine")
        positive, negative = informative_pairs(similarity, *masks(comparison), epsilon)
        return _pairs_where(positive, negative)


def distance_matrix(comparison: Comparison, distance: str | Distance) -> tf.Tensor:
    """`[B, M]` without gradient; references with equal embeddings have equal distances.

    XLA refuses to compile it, for the miners whose results have shapes that depend on data.
    """
    metric = resolve(distance, DISTANCES, "distance")
    x, y = tf.stop_gradient(comparison.embeddings), tf.stop_gradient(comparison.references)
    with tf.control_dependencies(refuse_xla(x, "mining_has_shapes_that_depend_on_data")):
        firsts, measured_as = distinct_rows(y)
    return tf.gather(metric.pairwise(x, tf.gather(y, firsts)), measured_as, axis=1)


def pairs_of(rows: tf.Tensor) -> list[tf.Tensor]:
    """`[T, 2]` indices as two int32 vectors."""
    return tf.unstack(tf.cast(rows, tf.int32), num=2, axis=1)


def _pairs_where(positive: tf.Tensor, negative: tf.Tensor) -> Pairs:
    return Pairs(*pairs_of(tf.where(positive)), *pairs_of(tf.where(negative)))


def _triplets_of(pairs: tf.Tensor, kept: tf.Tensor) -> Triplets:
    """The positive pairs `[T, 2]`, each with the negatives of its row of the mask `[T, M]`."""
    anchors, positives = pairs_of(pairs)
    rows, negatives = pairs_of(tf.where(kept))
    return Triplets(tf.gather(anchors, rows), tf.gather(positives, rows), negatives)
