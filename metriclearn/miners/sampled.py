"""Miners that draw at random, by a seed: the same seed draws the same."""

from typing import Any

import tensorflow as tf

from metriclearn.distances import ON_SPHERE, Distance
from metriclearn.inputs import TensorLike
from metriclearn.miners.matrices import distance_matrix, pairs_of
from metriclearn.miners.results import Pairs, Triplets
from metriclearn.pairs import References, compare, masks, members
from metriclearn.scan import Block, MiningOptions, scan_rows
from metriclearn.xla import chosen


def mine_distance_weighted(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    seed: TensorLike = (0, 0),
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    references: References | None = None,
    mining_dtype: Any = None,
    false_negative_guard: float | None = None,
) -> Triplets:
    """Returns, for each (anchor, positive), a negative drawn uniformly over distances.

    Wu, Manmatha, Smola, Krahenbuhl: Sampling Matters in Deep Embedding Learning (arXiv
    1706.07567), section 4.1: weights 1 / q(d), where q(d) ~ d^(D-2) (1 - d^2/4)^((D-3)/2) is the
    density of distances on the unit sphere. Embeddings are normalized first.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point; not all zero.
        seed: two integers or a `[2]` tensor. Pass the step as the second: otherwise every step
            draws the same.
        cutoff: nearer negatives weigh as much as one at this distance, which bounds the variance.
        nonzero_loss_cutoff: farther negatives are not drawn. If an anchor has no others, all of its
            negatives are equally likely.
        references, mining_dtype, false_negative_guard: see the module. The guard is a Euclidean
            distance of normalized embeddings.

    Returns:
        `Triplets`, one per pair, ordered by anchor and positive.
    """
    with tf.name_scope("mine_distance_weighted"):
        comparison = compare(labels, embeddings, references).normalized()
        dimension = tf.cast(tf.shape(comparison.embeddings)[1], comparison.embeddings.dtype)
        # Drawn for the whole batch at once, so that blocks do not change what is drawn.
        shape = tf.stack([tf.size(comparison.codes), members(comparison)])
        draws = tf.random.stateless_uniform(shape, seed, dtype=comparison.embeddings.dtype)

        def select(block: Block) -> tuple:
            allowed = block.negatives > block.negatives.dtype.min
            squared = 2 - 2 * tf.maximum(block.negatives, -1)
            squared = tf.clip_by_value(squared, cutoff**2, 3.99)  # at 4 the density is 0
            log_weights = -(dimension - 2) / 2 * tf.math.log(squared)
            log_weights -= (dimension - 3) / 2 * tf.math.log(1 - squared / 4)
            near = allowed & (squared < nonzero_loss_cutoff**2)
            highest = tf.reduce_max(
                tf.where(near, log_weights, log_weights.dtype.min), axis=1, keepdims=True
            )
            weights = tf.where(near, tf.exp(log_weights - highest), 0)
            none_near = ~tf.reduce_any(near, axis=1, keepdims=True)
            weights = tf.where(none_near & allowed, tf.ones_like(weights), weights)
            sums = tf.cumsum(weights, axis=1)
            # Just below the total: if rounding reached it, it would point beyond the row.
            thresholds = tf.gather(draws, block.rows) * sums[:, -1:] * (1 - 1e-6)
            negatives = tf.searchsorted(sums, thresholds, side="right")
            found = tf.broadcast_to(tf.reduce_any(allowed, 1)[:, None], tf.shape(negatives))
            return block.columns, block.is_positive & found, negatives

        # On the unit sphere |x - y|^2 = 2 - 2 x.y; the scan ranks by -x.y.
        guard = None if false_negative_guard is None else false_negative_guard**2 / 2 - 1
        options = MiningOptions(ON_SPHERE, mining_dtype, guard)
        dtypes = (tf.int32, tf.bool, tf.int32)
        positives, is_positive, negatives = scan_rows(select, dtypes, comparison, options)
        rows = tf.range(tf.shape(positives)[0])[:, None]
        return Triplets(*chosen(is_positive, rows, positives, negatives))


def mine_uniform_histogram(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    seed: TensorLike = (0, 0),
    bins: int = 100,
    positives_per_bin: int = 10,
    negatives_per_bin: int = 10,
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> Pairs:
    """Draws pairs so that their distances are spread uniformly over the range that occurs.

    For each kind of pair, `bins` equal steps from the smallest distance to the largest; from each
    step that has a pair, that many draws with replacement. `mine_distance_weighted` draws over
    distances per anchor and supersedes it.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        seed: two integers or a `[2]` tensor. Pass the step as the second: otherwise every step
            draws the same.
        distance, references: see the package.

    Returns:
        `Pairs`, from the nearest step to the farthest.
    """
    with tf.name_scope("mine_uniform_histogram"):
        comparison = compare(labels, embeddings, references)
        distances = distance_matrix(comparison, distance)

        def draw(mask: tf.Tensor, count: int, kind: int) -> list[tf.Tensor]:
            pairs = tf.where(mask)
            values = tf.gather_nd(distances, pairs)
            # Of no pairs there is no range.
            ends = tf.cond(
                tf.size(values) > 0,
                lambda: tf.stack([tf.reduce_min(values), tf.reduce_max(values)]),
                lambda: tf.zeros([2], values.dtype),
            )
            edges = tf.linspace(ends[0], ends[1], bins + 1)
            steps = tf.searchsorted(edges, values, side="right") - 1
            steps = tf.clip_by_value(steps, 0, bins - 1)  # the last one includes its upper edge
            sizes = tf.math.bincount(steps, minlength=bins, maxlength=bins)
            used = tf.where(sizes > 0)[:, 0]
            draws = tf.random.stateless_uniform([2, bins, count], seed)[kind]
            size = tf.cast(tf.gather(sizes, used), draws.dtype)[:, None]
            offsets = tf.cast(tf.floor(tf.gather(draws, used) * size), tf.int32)
            starts = tf.gather(tf.cumsum(sizes, exclusive=True), used)[:, None]
            by_step = tf.argsort(steps, stable=True)
            drawn = tf.gather(pairs, tf.gather(by_step, tf.reshape(starts + offsets, [-1])))
            return pairs_of(drawn)

        positive, negative = masks(comparison)
        return Pairs(*draw(positive, positives_per_bin, 0), *draw(negative, negatives_per_bin, 1))
