"""Miners: which triplets of a batch a loss should look at.

A miner is a function `(labels [B], embeddings [B, D], ...) -> Triplets`, or its name in `MINERS`.
It returns indices only, so it carries no gradient. Ties are broken by the lowest index.

All miners here but `mine_batch_all` share these options:
    distance: a name in `DISTANCES` or a `Distance`.
    references: a `References` to mine in; the batch itself when None.
    mining_dtype: dtype of the matrix product that ranks candidates, such as 'bfloat16'.
    false_negative_guard: a distance; references of another class that are nearer than this to the
        anchor are taken for wrong labels and are not mined. `count_suspended` counts them.
They raise ValueError for an unknown name, and for labels and embeddings that do not fit together.
"""

from typing import NamedTuple

import tensorflow as tf

from metriclearn.distances import DISTANCES, DOT
from metriclearn.pairs import class_sizes, compare, masks, scan_rows, valid_anchors
from metriclearn.registry import resolve

# Up to this many positives an anchor, a pass over its row for each of them is faster than sorting
# it.
PASSES = 16


class Triplets(NamedTuple):
    """Row indices of T triplets, each `[T]` int32.

    Attributes:
        anchors: rows of the batch.
        positives: rows of the references (the batch itself unless the miner was given others).
        negatives: rows of the references.
    """

    anchors: tf.Tensor
    positives: tf.Tensor
    negatives: tf.Tensor


def mine_batch_hard(
    labels,
    embeddings,
    *,
    distance="euclidean",
    references=None,
    mining_dtype=None,
    false_negative_guard=None,
):
    """For each anchor its farthest positive and its nearest negative.

    Hermans, Beyer, Leibe: In Defense of the Triplet Loss (arXiv 1703.07737), eq. 5.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, one for each anchor that has a positive and a negative, in the order of anchors.
    """

    def select(block):
        positive = _best(-block.positives, block.is_positive)
        return _column(block, positive), *_nearest(block)

    with tf.name_scope("mine_batch_hard"):
        comparison = compare(labels, embeddings, references)
        positives, negatives, found = scan_rows(
            select, _ONE_EACH, comparison, distance, mining_dtype, false_negative_guard
        )
        return _one_an_anchor(valid_anchors(comparison) & found, positives, negatives)


def mine_batch_all(labels, embeddings, *, references=None):
    """Every triplet of the batch, ordered by anchor, positive, negative. T is up to B^3 / 4.

    Hermans, Beyer, Leibe (arXiv 1703.07737), eq. 7.
    """
    with tf.name_scope("mine_batch_all"):
        positive, negative = masks(compare(labels, embeddings, references))
        anchors, positives = tf.unstack(tf.cast(tf.where(positive), tf.int32), num=2, axis=1)
        rows, negatives = tf.unstack(
            tf.cast(tf.where(tf.gather(negative, anchors)), tf.int32), num=2, axis=1
        )
        return Triplets(tf.gather(anchors, rows), tf.gather(positives, rows), negatives)


def mine_semi_hard(
    labels,
    embeddings,
    *,
    margin=0.2,
    fallback="none",
    distance="euclidean",
    references=None,
    mining_dtype=None,
    false_negative_guard=None,
):
    """For each (anchor, positive) the nearest negative that is farther than the positive.

    Schroff, Kalenichenko, Philbin: FaceNet (arXiv 1503.03832), section 3.2. The four things that
    the field calls semi-hard are told apart in docs/metriclearn.md.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point.
        margin: the negative's distance must be less than the positive's plus this; None for no
            such limit.
        fallback: for pairs without such a negative: 'none' leaves them out, 'farthest' takes the
            anchor's farthest negative (with `margin=None` this is the semi-hard of tf.contrib and
            TF-Addons), 'hardest' its nearest one.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, at most one a pair, ordered by anchor and positive.
    """
    last_resort = resolve(fallback, _FALLBACKS, "fallback")
    distance = resolve(distance, DISTANCES, "distance")

    def select(block):
        negatives, found = _nearest_below(block.negatives, block.positives)
        last, has_last = (
            tf.broadcast_to(t[:, None], tf.shape(negatives)) for t in last_resort(block)
        )
        return block.columns, block.is_positive, negatives, found, last, has_last

    with tf.name_scope("mine_semi_hard"):
        comparison = compare(labels, embeddings, references)
        dtypes = (tf.int32, tf.bool, tf.int32, tf.bool, tf.int32, tf.bool)
        positives, is_positive, *others = scan_rows(
            select, dtypes, comparison, distance, mining_dtype, false_negative_guard
        )
        pairs = tf.where(is_positive)
        anchors = tf.cast(pairs[:, 0], tf.int32)
        positives, negatives, found, last, has_last = (
            tf.gather_nd(t, pairs) for t in (positives, *others)
        )
        if margin is not None:
            # Measured from the embeddings, as the loss does, and not from the ranking product.
            to_positive, to_negative = comparison.distances(distance, anchors, positives, negatives)
            found &= to_negative < to_positive + margin
        negatives = tf.where(found, negatives, last)
        kept = tf.where(found | has_last)[:, 0]
        return Triplets(*(tf.gather(t, kept) for t in (anchors, positives, negatives)))


def mine_easy_positive(
    labels,
    embeddings,
    *,
    negative="semi_hard",
    distance="euclidean",
    references=None,
    mining_dtype=None,
    false_negative_guard=None,
):
    """For each anchor its nearest positive, and a negative: for classes of many looks.

    Xuan, Stylianou, Pless: Improved Embeddings with Easy Positive Triplet Mining (arXiv
    1904.04370), section 3.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point.
        negative: 'semi_hard', the nearest one that is farther than that positive (anchors without
            one are left out); 'hard', the nearest one.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, at most one an anchor, in the order of anchors.
    """
    limited = resolve(negative, {"semi_hard": True, "hard": False}, "negative")

    def select(block):
        place = _best(block.positives, block.is_positive)
        if limited:
            limit = tf.gather(block.positives, place, batch_dims=1)
            negatives, found = (t[:, 0] for t in _nearest_below(block.negatives, limit[:, None]))
        else:
            negatives, found = _nearest(block)
        return _column(block, place), negatives, found

    with tf.name_scope("mine_easy_positive"):
        comparison = compare(labels, embeddings, references)
        positives, negatives, found = scan_rows(
            select, _ONE_EACH, comparison, distance, mining_dtype, false_negative_guard
        )
        return _one_an_anchor(valid_anchors(comparison) & found, positives, negatives)


def mine_top_k_hard(
    labels,
    embeddings,
    *,
    k=5,
    distance="euclidean",
    references=None,
    mining_dtype=None,
    false_negative_guard=None,
):
    """For each anchor its farthest positive with each of its k nearest negatives.

    Between batch-hard (k = 1), which follows outliers, and batch-all, which most triplets bore.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point.
        k: negatives an anchor; all of them where it has fewer.
        distance, references, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets`, at most k an anchor, ordered by anchor and then from the nearest negative on.
    """

    def select(block):
        positive = _best(-block.positives, block.is_positive)
        top = tf.math.top_k(block.negatives, tf.minimum(k, tf.shape(block.negatives)[1]))
        return _column(block, positive), top.indices, top.values > top.values.dtype.min

    with tf.name_scope("mine_top_k_hard"):
        comparison = compare(labels, embeddings, references)
        positives, negatives, found = scan_rows(
            select, _ONE_EACH, comparison, distance, mining_dtype, false_negative_guard
        )
        chosen = tf.where(found & valid_anchors(comparison)[:, None])
        anchors = tf.cast(chosen[:, 0], tf.int32)
        return Triplets(anchors, tf.gather(positives, anchors), tf.gather_nd(negatives, chosen))


def mine_distance_weighted(
    labels,
    embeddings,
    *,
    seed=(0, 0),
    cutoff=0.5,
    nonzero_loss_cutoff=1.4,
    references=None,
    mining_dtype=None,
    false_negative_guard=None,
):
    """For each (anchor, positive) a negative drawn so that all distances are equally likely.

    Wu, Manmatha, Smola, Krahenbuhl: Sampling Matters in Deep Embedding Learning (arXiv
    1706.07567), section 4.1: weights 1 / q(d), where q(d) ~ d^(D-2) (1 - d^2/4)^((D-3)/2) is how
    distances spread on the unit sphere. The directions of the embeddings are compared.

    Args:
        labels: `[B]` integers or strings.
        embeddings: `[B, D]` floating point; not all zero.
        seed: two integers or `[2]` tensor; give the step as the second, or every step draws alike.
        cutoff: nearer negatives weigh as much as one at this distance, which bounds the variance.
        nonzero_loss_cutoff: farther negatives are not drawn; where an anchor has no other, all of
            its negatives are equally likely.
        references, mining_dtype, false_negative_guard: see the module; Euclidean distance of the
            normalised embeddings.

    Returns:
        `Triplets`, one a pair, ordered by anchor and positive.
    """
    with tf.name_scope("mine_distance_weighted"):
        comparison = compare(labels, embeddings, references).normalised()
        dimension = tf.cast(tf.shape(comparison.embeddings)[1], comparison.embeddings.dtype)
        # Drawn for the whole batch at once, so that blocks do not change what is drawn.
        places = tf.maximum(tf.reduce_max(class_sizes(comparison)), 1)
        shape = tf.stack([tf.size(comparison.codes), places])
        draws = tf.random.stateless_uniform(shape, seed, dtype=comparison.embeddings.dtype)

        def select(block):
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
            # Just below the total, which rounding must not reach: it would point behind the row.
            thresholds = tf.gather(draws, block.rows) * sums[:, -1:] * (1 - 1e-6)
            negatives = tf.searchsorted(sums, thresholds, side="right")
            found = tf.broadcast_to(tf.reduce_any(allowed, 1)[:, None], tf.shape(negatives))
            return block.columns, block.is_positive & found, negatives

        positives, is_positive, negatives = scan_rows(
            select,
            (tf.int32, tf.bool, tf.int32),
            comparison,
            DOT,
            mining_dtype,
            # On the unit sphere |x - y|^2 = 2 - 2 x.y; the scan compares by -x.y.
            None if false_negative_guard is None else false_negative_guard**2 / 2 - 1,
        )
        pairs = tf.where(is_positive)
        anchors = tf.cast(pairs[:, 0], tf.int32)
        return Triplets(anchors, *(tf.gather_nd(t, pairs) for t in (positives, negatives)))


def mine_given_positive(
    labels,
    embeddings,
    *,
    negatives="both",
    distance="euclidean",
    mining_dtype=None,
    false_negative_guard=None,
):
    """For each given pair (query, positive) the query's nearest negative.

    Dodds, Nguyen et al.: Learning Embeddings for Product Visual Search with Triplet Loss and Online
    Sampling (arXiv 1810.04652): queries are consumers' pictures, positives the shop's.

    Args:
        labels: `[2 N]` integers or strings, as `pair_sampler` orders them: N queries, then the
            positive of each.
        embeddings: `[2 N, D]` floating point.
        negatives: where they come from: 'cross', the positives of other queries; 'intra', other
            queries; 'both'.
        distance, mining_dtype, false_negative_guard: see the module.

    Returns:
        `Triplets` with the rows of the batch, one for each query that has a negative.
    """
    first, end = resolve(
        negatives, {"intra": (0, 1), "cross": (1, 2), "both": (0, 2)}, "source of negatives"
    )
    with tf.name_scope("mine_given_positive"):
        whole = compare(labels, embeddings)
        pairs = tf.size(whole.codes) // 2
        at = slice(first * pairs, end * pairs)
        comparison = whole._replace(
            codes=whole.codes[:pairs],
            embeddings=whole.embeddings[:pairs],
            reference_codes=whole.codes[at],
            references=whole.embeddings[at],
            self_index=tf.fill([pairs], -1),
        )
        mined, found = scan_rows(
            _nearest,
            (tf.int32, tf.bool),
            comparison,
            distance,
            mining_dtype,
            false_negative_guard,
        )
        return _one_an_anchor(found, tf.range(pairs) + pairs, mined + first * pairs)


def count_suspended(
    labels, embeddings, false_negative_guard, *, distance="euclidean", references=None
):
    """`[B]` int32: how many references of other classes the guard keeps from each anchor.

    The counterpart of the miners' option `false_negative_guard`, for a summary: a count that grows
    says that labels disagree with what the embedding sees.
    """

    def select(block):
        negatives = tf.math.count_nonzero(
            block.negatives > block.negatives.dtype.min, axis=1, dtype=tf.int32
        )
        return (negatives,)

    with tf.name_scope("count_suspended"):
        comparison = compare(labels, embeddings, references)
        (kept,) = scan_rows(select, (tf.int32,), comparison, distance, guard=false_negative_guard)
        (total,) = scan_rows(select, (tf.int32,), comparison, distance)
        return total - kept


def _best(scores, mask=None):
    """`[b]` int32: the place of the highest score in each row, the lowest one among equals."""
    if mask is not None:
        scores = tf.where(mask, scores, scores.dtype.min)
    return tf.argmax(scores, axis=1, output_type=tf.int32)


def _column(block, place):
    """`[b]` int32: the reference at `place` among the class members of each row."""
    return tf.gather(block.columns, place, batch_dims=1)


def _nearest(block):
    """(`[b]` int32 nearest negative, `[b]` bool whether there is one)."""
    nearest = _best(block.negatives)
    score = tf.gather(block.negatives, nearest, batch_dims=1)
    # `!=` and not `>`: a NaN counts as found, so that it reaches the loss and is seen there.
    return nearest, tf.not_equal(score, score.dtype.min)


def _farthest(block):
    """(`[b]` int32 farthest negative, `[b]` bool whether there is one)."""
    present = tf.not_equal(block.negatives, block.negatives.dtype.min)
    return _best(-block.negatives, present), tf.reduce_any(present, axis=1)


def _no_negative(block):
    return tf.zeros_like(block.rows), tf.zeros_like(block.rows, tf.bool)


def _nearest_below(negatives, limits):
    """For each limit `[b, K]` the nearest negative that is farther: (place `[b, K]`, exists)."""
    lowest = negatives.dtype.min

    def one_pass(limit):
        return _best(negatives, negatives < limit[:, None])

    def in_passes():
        columns = tf.transpose(limits)
        return tf.transpose(tf.map_fn(one_pass, columns, tf.int32, parallel_iterations=1))

    def by_sorting():
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


def _one_an_anchor(valid, positives, negatives):
    anchors = tf.cast(tf.where(valid)[:, 0], tf.int32)
    return Triplets(anchors, tf.gather(positives, anchors), tf.gather(negatives, anchors))


_ONE_EACH = (tf.int32, tf.int32, tf.bool)
_FALLBACKS = {"none": _no_negative, "farthest": _farthest, "hardest": _nearest}

MINERS = {
    "batch_all": mine_batch_all,
    "batch_hard": mine_batch_hard,
    "distance_weighted": mine_distance_weighted,
    "easy_positive": mine_easy_positive,
    "given_positive": mine_given_positive,
    "semi_hard": mine_semi_hard,
    "top_k_hard": mine_top_k_hard,
}
