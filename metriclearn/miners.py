"""Miners: which triplets of a batch a loss uses.

A miner is a function `(labels [B], embeddings [B, D], ...) -> Triplets`, or its name in `MINERS`.
It returns indices only, so it carries no gradient.

Candidates are ranked by one matrix product. References with equal embeddings tie exactly, and ties
go to the lowest index; distances of different rows are compared to within the rounding of the
product.

All miners except `mine_batch_all` share these options:
    distance: a name in `DISTANCES` or a `Distance`.
    references: a `References` to mine in; the batch itself if None.
    mining_dtype: floating-point dtype of the matrix product, such as 'bfloat16'.
    false_negative_guard: a distance. References of another class that are nearer to the anchor than
        this are assumed to be wrong labels and are not mined. `count_suspended` counts them.
They raise ValueError for an unknown name, and for labels and embeddings that do not fit together.
The number of triplets depends on the data, so XLA refuses to compile miners; its error names them.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from metriclearn.distances import ON_SPHERE, Distance
from metriclearn.inputs import TensorLike, refuse_xla
from metriclearn.pairs import (
    Block,
    MiningOptions,
    References,
    class_sizes,
    compare,
    masks,
    scan_rows,
    valid_anchors,
)
from metriclearn.registry import resolve

# Up to this many positives per anchor, one pass over the row for each is faster than sorting it.
PASSES = 16


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
        positives, negatives, found = scan_rows(select, _ONE_EACH, comparison, options)
        return _one_per_anchor(valid_anchors(comparison) & found, positives, negatives)


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
            positive = tf.identity(positive)
        anchors, positives = tf.unstack(tf.cast(tf.where(positive), tf.int32), num=2, axis=1)
        rows, negatives = tf.unstack(
            tf.cast(tf.where(tf.gather(negative, anchors)), tf.int32), num=2, axis=1
        )
        return Triplets(tf.gather(anchors, rows), tf.gather(positives, rows), negatives)


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

    def select(block: Block) -> tuple:
        negatives, found = _nearest_below(block.negatives, block.positives)
        last, has_last = (
            tf.broadcast_to(t[:, None], tf.shape(negatives)) for t in last_resort(block)
        )
        return block.columns, block.is_positive, negatives, found, last, has_last

    with tf.name_scope("mine_semi_hard"):
        comparison = compare(labels, embeddings, references)
        dtypes = (tf.int32, tf.bool, tf.int32, tf.bool, tf.int32, tf.bool)
        options = MiningOptions(distance, mining_dtype, false_negative_guard)
        positives, is_positive, *others = scan_rows(select, dtypes, comparison, options)
        pairs = tf.where(is_positive)
        anchors = tf.cast(pairs[:, 0], tf.int32)
        positives, negatives, found, last, has_last = (
            tf.gather_nd(t, pairs) for t in (positives, *others)
        )
        if margin is not None:
            # Measured from the rows' differences, as the loss does, and not by the ranking product.
            to_positive, to_negative = comparison.distances(distance, anchors, positives, negatives)
            found &= to_negative < to_positive + margin
        negatives = tf.where(found, negatives, last)
        kept = tf.where(found | has_last)[:, 0]
        return Triplets(*(tf.gather(t, kept) for t in (anchors, positives, negatives)))


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
        chosen = tf.where(found & valid_anchors(comparison)[:, None])
        anchors = tf.cast(chosen[:, 0], tf.int32)
        return Triplets(anchors, tf.gather(positives, anchors), tf.gather_nd(negatives, chosen))


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
        places = tf.maximum(tf.reduce_max(class_sizes(comparison)), 1)
        shape = tf.stack([tf.size(comparison.codes), places])
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
        pairs = tf.where(is_positive)
        anchors = tf.cast(pairs[:, 0], tf.int32)
        return Triplets(anchors, *(tf.gather_nd(t, pairs) for t in (positives, negatives)))


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


def call_miner(
    miner: str | Callable[..., Any], labels: TensorLike, embeddings: TensorLike, **options: Any
) -> Triplets:
    """Calls a miner for a loss, with the loss's options.

    Args:
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> Triplets`, such as a
            `functools.partial` of one here.
        labels: `[B]`.
        embeddings: `[B, D]`.
        options: the loss's own. `distance` and `margin` are also used by the loss, so a miner may
            lack them or bind others. `references` and `mining_dtype` are the miner's to honor.

    Raises:
        ValueError: the miner cannot honor `references` or `mining_dtype`, or binds other ones.
    """
    function = resolve(miner, MINERS, "miner")
    name = miner if isinstance(miner, str) else getattr(function, "__name__", repr(function))
    bound = getattr(function, "keywords", {})
    parameters = inspect.signature(function).parameters
    for option in ("references", "mining_dtype"):
        value, own = options.get(option), bound.get(option)
        if value is not None and option not in parameters:
            raise ValueError(f"the miner {name} takes no {option}")
        # The loss must know references, which it measures; how a miner ranks may be bound.
        if own is not None and own is not value and (value is not None or option == "references"):
            raise ValueError(f"the miner {name} binds {option}: pass it to the loss instead")
    taken = {k: v for k, v in options.items() if k in parameters and k not in bound}
    return Triplets(*function(labels, embeddings, **taken))


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

    def one_pass(limit: tf.Tensor) -> tf.Tensor:
        return _best(negatives, negatives < limit[:, None])

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
    else:
        place = tf.cond(tf.shape(limits)[1] <= PASSES, in_passes, by_sorting)
    score = tf.gather(negatives, place, batch_dims=1)
    return place, (score < limits) & (score > lowest)


def _one_per_anchor(valid: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor) -> Triplets:
    anchors = tf.cast(tf.where(valid)[:, 0], tf.int32)
    return Triplets(anchors, tf.gather(positives, anchors), tf.gather(negatives, anchors))


_ONE_EACH = (tf.int32, tf.int32, tf.bool)
_FALLBACKS: dict[str, Callable[[Block], tuple]] = {
    "none": _no_negative,
    "farthest": _farthest,
    "hardest": _nearest,
}

MINERS: dict[str, Callable[..., Triplets]] = {
    "batch_all": mine_batch_all,
    "batch_hard": mine_batch_hard,
    "distance_weighted": mine_distance_weighted,
    "easy_positive": mine_easy_positive,
    "given_positive": mine_given_positive,
    "semi_hard": mine_semi_hard,
    "top_k_hard": mine_top_k_hard,
}
