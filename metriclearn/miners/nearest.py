"""Miners that rank each anchor's references in blocks of rows: O(block + B D) memory."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from metriclearn.distances import Distance
from metriclearn.inputs import TensorLike
from metriclearn.miners.halves import among_itself
from metriclearn.miners.results import Triplets
from metriclearn.pairs import References, compare, valid_anchors
from metriclearn.registry import resolve
from metriclearn.scan import Block, MiningOptions, scan_rows
from metriclearn.xla import chosen, compiling

# Up to this many positives per anchor, one pass over the row for each is faster than sorting it.
PASSES = 16


def mine_batch_hard(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    distance: str | Distance = "euclidean",
    references: References | None = None,
    mining_dtype: Any = None,
    false_negative_guard: float | None = None,
) -> Triplets:
    """Returns, for each anchor, its farthest positive and its nearest negative.

    Hermans, Beyer, Leibe: In Defense of the Triplet Loss (arXiv 1703.07737), eq. 5.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, one per anchor that has a positive and a negative, in the order of anchors.
    """

    def select(block: Block) -> tuple:
        positive = _best(-block.positives, block.is_positive)
        return _column(block, positive), *_nearest(block)

    with tf.name_scope("mine_batch_hard"):
        comparison = compare(labels, embeddings, references)
        options = MiningOptions(distance, mining_dtype, false_negative_guard)

        def scan() -> tuple:
            return scan_rows(select, _ONE_EACH, comparison, options)

        halves = among_itself(comparison, options)
        hardest = scan() if halves is None else tf.cond(*halves, scan)
        # Else a custom gradient would take a variable that was mined for one of its own.
        positives, negatives, found = (tf.stop_gradient(t) for t in hardest)
        return _one_per_anchor(valid_anchors(comparison) & found, positives, negatives)


def mine_semi_hard(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    margin: float | None = 0.2,
    fallback: str = "none",
    distance: str | Distance = "euclidean",
    references: References | None = None,
    mining_dtype: Any = None,
    false_negative_guard: float | None = None,
) -> Triplets:
    """Returns, for each (anchor, positive), the nearest negative farther than the positive.

    Schroff, Kalenichenko, Philbin: FaceNet (arXiv 1503.03832), section 3.2. docs/metriclearn.md
    distinguishes the four methods that the field calls semi-hard.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        margin: the negative's distance must be less than the positive's plus this; None for no
            such limit.
        fallback: for pairs without such a negative: 'none' skips them, 'farthest' takes the
            anchor's farthest negative (with `margin=None` this is the semi-hard of tf.contrib and
            TF-Addons), 'hardest' takes its nearest one.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, at most one per pair, ordered by anchor and positive.
    """
    last_resort = resolve(fallback, _FALLBACKS, "fallback")
    alone = references is None and not compiling()

    def select(block: Block) -> tuple:
        count = tf.shape(block.columns)[1] - int(alone)  # the last one is the anchor
        limits = block.positives[:, : tf.maximum(count, 1)]
        negatives, found = _nearest_below(block.negatives, limits)
        last, has_last = (
            tf.broadcast_to(t[:, None], tf.shape(negatives)) for t in last_resort(block)
        )
        columns, is_positive = (t[:, : tf.shape(limits)[1]] for t in block[1:3])
        return columns, is_positive, negatives, found, last, has_last

    with tf.name_scope("mine_semi_hard"):
        comparison = compare(labels, embeddings, references)
        dtypes = (tf.int32, tf.bool, tf.int32, tf.bool, tf.int32, tf.bool)
        options = MiningOptions(distance, mining_dtype, false_negative_guard)
        positives, is_positive, *others = scan_rows(
            select, dtypes, comparison, options, self_last=alone
        )
        rows = tf.range(tf.shape(positives)[0])[:, None]
        anchors, positives, negatives, found, last, has_last = chosen(
            is_positive, rows, positives, *others
        )
        if margin is not None:
            # Measured from the rows' differences, as the loss does, and not by the ranking product.
            # What was not found may be the anchor itself, and a distance of 0 is slow to tell apart
            # from one that is very small.
            negatives = tf.where(found, negatives, positives)
            to_positive, to_negative = comparison.distances(distance, anchors, positives, negatives)
            found &= to_negative < to_positive + margin
        negatives = tf.where(found, negatives, last)
        return Triplets(*chosen(found | has_last, anchors, positives, negatives))


def mine_easy_positive(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    negative: str = "semi_hard",
    distance: str | Distance = "euclidean",
    references: References | None = None,
    mining_dtype: Any = None,
    false_negative_guard: float | None = None,
) -> Triplets:
    """Returns, for each anchor, its nearest positive and a negative: for classes of many looks.

    Xuan, Stylianou, Pless: Improved Embeddings with Easy Positive Triplet Mining (arXiv
    1904.04370), section 3.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        negative: 'semi_hard', the nearest one that is farther than that positive (anchors without
            one are skipped); 'hard', the nearest one.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, at most one per anchor, in the order of anchors.
    """
    limited = resolve(negative, {"semi_hard": True, "hard": False}, "negative")

    def select(block: Block) -> tuple:
        place = _best(block.positives, block.is_positive)
        if limited:
            limit = tf.gather(block.positives, place, batch_dims=1)
            negatives, found = (t[:, 0] for t in _nearest_below(block.negatives, limit[:, None]))
        else:
            negatives, found = _nearest(block)
        return _column(block, place), negatives, found

    with tf.name_scope("mine_easy_positive"):
        comparison = compare(labels, embeddings, references)
        options = MiningOptions(distance, mining_dtype, false_negative_guard)
        positives, negatives, found = scan_rows(select, _ONE_EACH, comparison, options)
        return _one_per_anchor(valid_anchors(comparison) & found, positives, negatives)


def mine_top_k_hard(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    k: int = 5,
    distance: str | Distance = "euclidean",
    references: References | None = None,
    mining_dtype: Any = None,
    false_negative_guard: float | None = None,
) -> Triplets:
    """Returns, for each anchor, its farthest positive with each of its k nearest negatives.

    Between batch-hard (k = 1), which follows outliers, and batch-all, in which most triplets are
    already satisfied and contribute nothing.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        k: negatives per anchor, at least 1; all of them where there are fewer.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, at most k per anchor, ordered by anchor and then from the nearest negative on.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")

    def select(block: Block) -> tuple:
        positive = _best(-block.positives, block.is_positive)
        top = tf.math.top_k(block.negatives, tf.minimum(k, tf.shape(block.negatives)[1]))
        return _column(block, positive), top.indices, top.values > top.values.dtype.min

    with tf.name_scope("mine_top_k_hard"):
        comparison = compare(labels, embeddings, references)
        options = MiningOptions(distance, mining_dtype, false_negative_guard)
        positives, negatives, found = scan_rows(select, _ONE_EACH, comparison, options)
        rows = tf.range(tf.shape(positives)[0])[:, None]
        found &= valid_anchors(comparison)[:, None]
        return Triplets(*chosen(found, rows, positives[:, None], negatives))


def mine_given_positive(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    negatives: str = "both",
    distance: str | Distance = "euclidean",
    mining_dtype: Any = None,
    false_negative_guard: float | None = None,
) -> Triplets:
    """Returns, for each given pair (query, positive), the query's nearest negative.

    Dodds, Nguyen et al.: Learning Embeddings for Product Visual Search with Triplet Loss and Online
    Sampling (arXiv 1810.04652): queries are consumers' images, positives are shop images.

    Args:
        labels: `[2 N]`, see `metriclearn.inputs`, in the order of `pair_sampler`: N queries, then
            the positive of each.
        embeddings: `[2 N, D]` floating point.
        negatives: where they come from: 'cross', the positives of other queries; 'intra', other
            queries; 'both'.
        distance, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets` with rows of the batch, one per query that has a negative.

    Raises:
        ValueError: the batch is known not to be pairs of equal labels. Where labels are not known
            when the graph is built, an assertion checks them.
    """
    first, end = resolve(
        negatives, {"intra": (0, 1), "cross": (1, 2), "both": (0, 2)}, "source of negatives"
    )
    with tf.name_scope("mine_given_positive"):
        whole = compare(labels, embeddings)
        pairs = tf.size(whole.codes) // 2
        codes = _codes_of_pairs(whole.codes)
        at = slice(first * pairs, end * pairs)
        comparison = whole._replace(
            codes=codes[:pairs],
            embeddings=whole.embeddings[:pairs],
            reference_codes=codes[at],
            references=whole.embeddings[at],
            self_index=tf.fill([pairs], -1),
        )
        options = MiningOptions(distance, mining_dtype, false_negative_guard)
        mined, found = scan_rows(_nearest, (tf.int32, tf.bool), comparison, options)
        return _one_per_anchor(found, tf.range(pairs) + pairs, mined + first * pairs)


def _codes_of_pairs(codes: tf.Tensor) -> tf.Tensor:
    """The `[2 N]` codes, checked to be N codes twice."""
    message = "given_positive needs N queries followed by the positive of each, with equal labels"
    half = tf.size(codes) // 2
    padded = tf.concat([codes, [-1]], 0)  # of an odd number, the last one meets -1
    paired = tf.reduce_all(tf.equal(codes[half:], padded[: tf.size(codes) - half]))
    if tf.executing_eagerly():
        if not paired:
            raise ValueError(message)
        return codes
    with tf.control_dependencies([tf.debugging.Assert(paired, [message])]):
        return tf.identity(codes)


def count_suspended(
    labels: TensorLike,
    embeddings: TensorLike,
    false_negative_guard: float,
    *,
    distance: str | Distance = "euclidean",
    references: References | None = None,
) -> tf.Tensor:
    """Counts the references of other classes that the guard keeps from each anchor.

    The counterpart of the miners' option `false_negative_guard`, for a summary: a growing count
    says that labels disagree with the embeddings.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        false_negative_guard, distance, references: as given to the miner.

    Returns:
        `[B]` int32.
    """

    def select(block: Block) -> tuple:
        negatives = tf.math.count_nonzero(
            block.negatives > block.negatives.dtype.min, axis=1, dtype=tf.int32
        )
        return (negatives,)

    with tf.name_scope("count_suspended"):
        comparison = compare(labels, embeddings, references)
        guarded = MiningOptions(distance, guard=false_negative_guard)
        (kept,) = scan_rows(select, (tf.int32,), comparison, guarded)
        (total,) = scan_rows(select, (tf.int32,), comparison, MiningOptions(distance))
        return total - kept


def _best(scores: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """`[b]` int32: the place of the highest score in each row; of equals, the lowest."""
    if mask is not None:
        scores = tf.where(mask, scores, scores.dtype.min)
    return tf.argmax(scores, axis=1, output_type=tf.int32)


def _column(block: Block, place: tf.Tensor) -> tf.Tensor:
    """`[b]` int32: the reference at `place` among the class members of each row."""
    return tf.gather(block.columns, place, batch_dims=1)


def _nearest(block: Block) -> tuple[tf.Tensor, tf.Tensor]:
    """(`[b]` int32 nearest negative, `[b]` bool whether there is one)."""
    nearest = _best(block.negatives)
    score = tf.gather(block.negatives, nearest, batch_dims=1)
    # `!=` and not `>`: a NaN counts as found, so that it reaches the loss and shows there.
    return nearest, tf.not_equal(score, score.dtype.min)


def _farthest(block: Block) -> tuple[tf.Tensor, tf.Tensor]:
    """(`[b]` int32 farthest negative, `[b]` bool whether there is one)."""
    present = tf.not_equal(block.negatives, block.negatives.dtype.min)
    return _best(-block.negatives, present), tf.reduce_any(present, axis=1)


def _no_negative(block: Block) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.zeros_like(block.rows), tf.zeros_like(block.rows, tf.bool)


def _nearest_below(negatives: tf.Tensor, limits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """For each limit `[b, K]` the nearest negative that is farther: (place `[b, K]`, exists)."""
    lowest = negatives.dtype.min
    bits = {4: tf.int32, 8: tf.int64}[negatives.dtype.size]

    def one_pass(limit: tf.Tensor) -> tf.Tensor:
        # Read as integers, negative floats grow with their size, and are below all positive ones:
        # one pass less than masking. A limit of -0 makes all differences from it that are 0
        # positive.
        limit = tf.where(tf.equal(limit, 0), tf.constant(-0.0, limit.dtype), limit)
        differences = tf.bitcast(negatives - limit[:, None], bits)
        return tf.argmin(differences, axis=1, output_type=tf.int32)

    def in_passes() -> tf.Tensor:
        columns = tf.transpose(limits)
        places = tf.map_fn(one_pass, columns, fn_output_signature=tf.int32, parallel_iterations=1)
        return tf.transpose(places)

    def by_sorting() -> tf.Tensor:
        ordered = tf.math.top_k(negatives, tf.shape(negatives)[1])
        place = tf.searchsorted(-ordered.values, -limits, side="right")
        place = tf.minimum(place, tf.shape(negatives)[1] - 1)
        return tf.gather(ordered.indices, place, batch_dims=1)

    if limits.shape[1] == 1:
        place = one_pass(limits[:, 0])[:, None]
    elif compiling():
        place = by_sorting()
    else:
        place = tf.cond(tf.shape(limits)[1] <= PASSES, in_passes, by_sorting)
    score = tf.gather(negatives, place, batch_dims=1)
    return place, (score < limits) & (score > lowest)


def _one_per_anchor(valid: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor) -> Triplets:
    return Triplets(*chosen(valid, tf.range(tf.size(valid)), positives, negatives))


_ONE_EACH = (tf.int32, tf.int32, tf.bool)
_FALLBACKS: dict[str, Callable[[Block], tuple]] = {
    "none": _no_negative,
    "farthest": _farthest,
    "hardest": _nearest,
}
