"""Losses over the pairs of a batch.

Each reads the `[B, M]` matrix of a batch and its references (the batch itself unless told): O(B M)
memory, one product forward and two backward. Embeddings are taken as they are; losses on a cosine
say so. Shared arguments:
    labels: `[B]` integers or strings; the same label makes a positive pair, self excluded by index.
    embeddings: `[B, D]` floating point; half precision is computed in float32.
    distance: a name in `DISTANCES` or a `Distance`.
    reduction: over the terms that each loss names: 'mean', 'nonzero_mean', 'sum', 'none'.
    references: a `References` to compare with, such as a memory's; the batch when None.
All return a scalar (a vector of terms for 'none'), exactly 0 with gradient 0 where the batch has no
valid term, and raise ValueError for unknown names and for labels that do not fit the embeddings.
"""

import tensorflow as tf

from metriclearn.distances import COSINE, DISTANCES
from metriclearn.losses.reductions import reduce_terms
from metriclearn.miners import mine_distance_weighted
from metriclearn.pairs import compare, masks
from metriclearn.registry import resolve


def contrastive_loss(
    labels,
    embeddings,
    *,
    positive_margin=0.0,
    negative_margin=1.0,
    distance="euclidean",
    reduction="mean",
    references=None,
):
    """Positives within one margin, negatives beyond another; the two kinds weigh the same.

    Hadsell, Chopra, LeCun: Dimensionality Reduction by Learning an Invariant Mapping (CVPR 2006),
    eq. 4, on the distance itself: positives `max(0, d - positive_margin)`, negatives
    `max(0, negative_margin - d)`. Squared terms as in the paper: `distance='squared'` for the
    positives' half.

    The reduction is taken over the positive pairs and over the negative pairs, and the two are
    added; 'none' gives the positive pairs' terms and then the negative pairs', row by row.
    """
    with tf.name_scope("contrastive_loss"):
        comparison, positive, negative, distances = _measure(
            labels, embeddings, distance, references
        )
        near = tf.nn.relu(tf.boolean_mask(distances, positive) - positive_margin)
        far = tf.nn.relu(negative_margin - tf.boolean_mask(distances, negative))
        if reduction == "none":
            return reduce_terms(tf.concat([near, far], 0), reduction, comparison)
        return reduce_terms(near, reduction, comparison) + reduce_terms(far, reduction, comparison)


def lifted_structured_loss(
    labels, embeddings, *, margin=1.0, distance="euclidean", reduction="mean", references=None
):
    """Each anchor against all its positives and negatives at once, softly maximal.

    Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature Embedding
    (arXiv 1511.06452), eq. 4, in the form generalised to many positives by Hermans, Beyer, Leibe
    (arXiv 1703.07737), eq. 9: `max(0, log sum_p exp d(a, p) + log sum_n exp(margin - d(a, n)))`.

    Terms: one an anchor that has a positive and a negative.
    """
    with tf.name_scope("lifted_structured_loss"):
        comparison, positive, negative, distances = _measure(
            labels, embeddings, distance, references
        )
        terms = tf.nn.relu(
            _log_sum_exp(distances, positive) + _log_sum_exp(margin - distances, negative)
        )
        return reduce_terms(_of_complete(terms, positive, negative), reduction, comparison)


def n_pairs_loss(labels, embeddings, *, reduction="mean", references=None):
    """Each positive pair against all negatives of its anchor, by dot products.

    Sohn: Improved Deep Metric Learning with Multi-class N-pair Loss Objective (NIPS 2016), eq. 4:
    `log(1 + sum_n exp(a.n - a.p))`. Regularise the length of the embeddings yourself, as the paper
    does.

    Terms: one a positive pair (a, p) whose anchor has a negative.
    """
    with tf.name_scope("n_pairs_loss"):
        comparison, positive, negative, distances = _measure(labels, embeddings, "dot", references)
        against = _log_sum_exp(-distances, negative)[:, None]
        terms = tf.nn.softplus(against + distances)
        kept = positive & tf.reduce_any(negative, axis=1, keepdims=True)
        return reduce_terms(tf.boolean_mask(terms, kept), reduction, comparison)


def supervised_contrastive_loss(
    labels, embeddings, *, temperature=0.1, reduction="mean", references=None
):
    """Cross-entropy of each anchor's positives among all others, by cosine. InfoNCE with labels.

    Khosla et al.: Supervised Contrastive Learning (arXiv 2004.11362), eq. 2 (L_out): the mean over
    an anchor's positives of `-log(exp(cos(a, p) / t) / sum_{j != a} exp(cos(a, j) / t))`. With two
    views an instance it is the NT-Xent of SimCLR, and with a pair a class InfoNCE (arXiv
    1807.03748).

    Terms: one an anchor that has a positive and a negative.
    """
    with tf.name_scope("supervised_contrastive_loss"):
        comparison, positive, negative, distances = _measure(labels, embeddings, COSINE, references)
        logits = (1 - distances) / temperature
        log_odds = logits - _log_sum_exp(logits, positive | negative)[:, None]
        terms = -_masked_mean(log_odds, positive)
        return reduce_terms(_of_complete(terms, positive, negative), reduction, comparison)


def multi_similarity_loss(
    labels,
    embeddings,
    *,
    alpha=2.0,
    beta=50.0,
    base=0.5,
    epsilon=0.1,
    reduction="mean",
    references=None,
):
    """Weighs pairs by their own and by their relative similarity, after mining informative ones.

    Wang, Han, Huang, Dong, Scott: Multi-Similarity Loss with General Pair Weighting (arXiv
    1904.06627), eq. 15 on cosines s: `log(1 + sum_p exp(-alpha (s_p - base))) / alpha +
    log(1 + sum_n exp(beta (s_n - base))) / beta`, over the pairs of eq. 6-7: negatives with
    `s_n + epsilon > min s_p` and positives with `s_p - epsilon < max s_n`. `epsilon=None` keeps all
    pairs.

    Terms: one an anchor that has a positive and a negative.
    """
    with tf.name_scope("multi_similarity_loss"):
        comparison, positive, negative, distances = _measure(labels, embeddings, COSINE, references)
        s = 1 - distances
        complete = _complete(positive, negative)
        if epsilon is not None:
            fixed = tf.stop_gradient(s)
            easiest = tf.reduce_min(_where(positive, fixed, fixed.dtype.max), 1, keepdims=True)
            hardest = tf.reduce_max(_where(negative, fixed, fixed.dtype.min), 1, keepdims=True)
            positive, negative = (
                positive & (fixed - epsilon < hardest),
                negative & (fixed + epsilon > easiest),
            )
        terms = (
            tf.nn.softplus(_log_sum_exp(-alpha * (s - base), positive)) / alpha
            + tf.nn.softplus(_log_sum_exp(beta * (s - base), negative)) / beta
        )
        return reduce_terms(tf.boolean_mask(terms, complete), reduction, comparison)


def circle_loss(
    labels, embeddings, *, relaxation=0.4, gamma=80.0, reduction="mean", references=None
):
    """Pairs weighted by how far each is from where it should be.

    Sun et al.: Circle Loss: A Unified Perspective of Pair Similarity Optimization (arXiv
    2002.10857), eq. 6 and 8 on cosines s, relaxation m: `log(1 + sum_n exp(gamma [s_n + m]_+
    (s_n - m)) sum_p exp(-gamma [1 + m - s_p]_+ (s_p - 1 + m)))`. The weights in brackets carry no
    gradient, as in the paper.

    Terms: one an anchor that has a positive and a negative.
    """
    with tf.name_scope("circle_loss"):
        comparison, positive, negative, distances = _measure(labels, embeddings, COSINE, references)
        s = 1 - distances
        for_positive = tf.stop_gradient(tf.nn.relu(1 + relaxation - s))
        for_negative = tf.stop_gradient(tf.nn.relu(s + relaxation))
        terms = tf.nn.softplus(
            _log_sum_exp(-gamma * for_positive * (s - 1 + relaxation), positive)
            + _log_sum_exp(gamma * for_negative * (s - relaxation), negative)
        )
        return reduce_terms(_of_complete(terms, positive, negative), reduction, comparison)


def margin_loss(
    labels,
    embeddings,
    *,
    beta=1.2,
    alpha=0.2,
    miner=mine_distance_weighted,
    reduction="nonzero_mean",
    references=None,
):
    """Positives nearer than a boundary, negatives farther, each by a margin.

    Wu, Manmatha, Smola, Krahenbuhl: Sampling Matters in Deep Embedding Learning (arXiv 1706.07567),
    eq. 4, Euclidean distance: `max(0, alpha + y (d - beta))`, y = 1 for a positive and -1 for a
    negative. The paper normalises the embeddings first and samples by distance.

    Args:
        beta: the boundary, a number; or `[B]` a value for each anchor, such as rows gathered from a
            variable with one entry a class, which is then learned.
        alpha: the margin.
        miner: `(labels, embeddings) -> Triplets`; bind options, such as the step's seed, with
            `functools.partial`.

    Terms: for each mined triplet that of (a, p), then for each that of (a, n); the paper divides by
    those that are not 0.
    """
    with tf.name_scope("margin_loss"):
        comparison = compare(labels, embeddings, references)
        options = {} if references is None else {"references": references}
        triplets = miner(labels, embeddings, **options)
        to_positive, to_negative = comparison.distances(DISTANCES["euclidean"], *triplets)
        dtype = to_positive.dtype
        beta = tf.cast(beta, dtype) if tf.is_tensor(beta) else tf.constant(beta, dtype)
        boundary = beta if beta.shape.rank == 0 else tf.gather(beta, triplets[0])
        terms = tf.concat([to_positive - boundary, boundary - to_negative], 0)
        return reduce_terms(tf.nn.relu(alpha + terms), reduction, comparison)


def _measure(labels, embeddings, distance, references):
    comparison = compare(labels, embeddings, references)
    distance = resolve(distance, DISTANCES, "distance")
    distances = distance.pairwise(comparison.embeddings, comparison.references)
    return comparison, *masks(comparison), distances


def _where(mask, values, otherwise):
    return tf.where(mask, values, tf.constant(otherwise, values.dtype))


def _log_sum_exp(values, mask):
    """`[B]`: log of the sum of exponentials of each row's masked values; very small if none."""
    # A large finite number and not the dtype's lowest, which would overflow where two are added.
    return tf.reduce_logsumexp(_where(mask, values, values.dtype.min / 4), axis=1)


def _masked_mean(values, mask):
    count = tf.cast(tf.math.count_nonzero(mask, axis=1), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(_where(mask, values, 0), axis=1), count)


def _complete(positive, negative):
    """`[B]` bool: the anchors with both a positive and a negative."""
    return tf.reduce_any(positive, axis=1) & tf.reduce_any(negative, axis=1)


def _of_complete(terms, positive, negative):
    return tf.boolean_mask(terms, _complete(positive, negative))
