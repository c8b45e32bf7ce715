"""Losses over the pairs of a batch.

Each computes the `[B, M]` matrix of a batch and its references (by default the batch itself):
O(B M) memory, one product forward and two backward. Embeddings are used as given; losses on a
cosine say so. Common arguments:
    labels: `[B]`, see `metriclearn.inputs`. Examples with equal labels are positive pairs; self is
        excluded by index.
    embeddings: `[B, D]` floating point; half precision is computed in float32.
    distance: a name in `DISTANCES` or a `Distance`.
    reduction: over the terms given for each loss: 'mean', 'nonzero_mean', 'sum', 'none'.
    references: a `References` to compare with, such as that of a memory; None: the batch.
All return a scalar (a vector of terms for 'none'), exactly 0 with gradient 0 if the batch has no
valid term. They raise ValueError for unknown names, and for labels that do not fit the embeddings.
"""

from collections.abc import Callable

import tensorflow as tf

from metriclearn.distances import Distance
from metriclearn.inputs import TensorLike, column_tensor, match_rows
from metriclearn.losses.matrices import (
    complete,
    cosines,
    log_sum_exp,
    masked_mean,
    measure,
    of_complete,
)
from metriclearn.losses.reductions import reduce_terms
from metriclearn.miners import call_miner, mine_distance_weighted
from metriclearn.pairs import References, compare, informative_pairs
from metriclearn.registry import resolve
from metriclearn.xla import real


def lifted_structured_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    margin: float = 1.0,
    form: str = "anchors",
    distance: str | Distance = "euclidean",
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Compares positives with all negatives at once, by a soft maximum; it has two forms.

    Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature Embedding
    (arXiv 1511.06452), eq. 4: per pair of positives `max(0, d(i, j) + log(sum_n exp(margin - d(i,
    n)) + sum_n exp(margin - d(j, n))))^2 / 2`. `generalized_lifted_structured_loss` supersedes it.

    Args:
        form: 'anchors', `generalized_lifted_structured_loss` with this margin for the negatives;
            'pairs', the paper's, which compares only the batch with itself.

    Terms: one per anchor that has a positive and a negative; for 'pairs' one per ordered pair of
    positives whose anchor has a negative.
    """
    if not resolve(form, {"anchors": False, "pairs": True}, "form"):
        return generalized_lifted_structured_loss(
            labels,
            embeddings,
            negative_margin=margin,
            distance=distance,
            reduction=reduction,
            references=references,
        )
    if references is not None:
        raise ValueError("form='pairs' compares the batch with itself: it takes no references")
    with tf.name_scope("lifted_structured_loss"):
        comparison, positive, negative, distances = measure(labels, embeddings, distance, None)
        against = log_sum_exp(margin - distances, negative)
        highest = tf.maximum(against[:, None], against)
        both = highest + tf.nn.softplus(-tf.abs(against[:, None] - against))
        terms = tf.nn.relu(distances + both) ** 2 / 2
        kept = positive & tf.reduce_any(negative, axis=1, keepdims=True)
        return reduce_terms(tf.boolean_mask(terms, kept), reduction, comparison)


def generalized_lifted_structured_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    distance: str | Distance = "euclidean",
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Compares each anchor with all its positives and negatives at once, by a soft maximum.

    The lifted structured loss for many positives by Hermans, Beyer, Leibe (arXiv 1703.07737), eq.
    9: `max(0, log sum_p exp(d(a, p) - positive_margin) + log sum_n exp(negative_margin -
    d(a, n)))`.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("lifted_structured_loss"):
        comparison, positive, negative, distances = measure(
            labels, embeddings, distance, references
        )
        terms = tf.nn.relu(
            log_sum_exp(distances - positive_margin, positive)
            + log_sum_exp(negative_margin - distances, negative)
        )
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def supervised_contrastive_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    temperature: float = 0.1,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Cross-entropy of each anchor's positives among all others, by cosine: InfoNCE with labels.

    Khosla et al.: Supervised Contrastive Learning (arXiv 2004.11362), eq. 2 (L_out): the mean over
    an anchor's positives of `-log(exp(cos(a, p) / t) / sum_{j != a} exp(cos(a, j) / t))`. With two
    views per instance it is the NT-Xent of SimCLR; with one pair per class, InfoNCE (arXiv
    1807.03748).

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("supervised_contrastive_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        logits = s / temperature
        log_odds = logits - log_sum_exp(logits, positive | negative)[:, None]
        terms = -masked_mean(log_odds, positive)
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def multi_similarity_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Weights pairs by their absolute and relative similarity, after mining informative pairs.

    Wang, Han, Huang, Dong, Scott: Multi-Similarity Loss with General Pair Weighting (arXiv
    1904.06627), eq. 15 on cosines s: `log(1 + sum_p exp(-alpha (s_p - base))) / alpha +
    log(1 + sum_n exp(beta (s_n - base))) / beta`, over the pairs of eq. 6-7: negatives with
    `s_n + epsilon > min s_p` and positives with `s_p - epsilon < max s_n`. `epsilon=None` keeps all
    pairs.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("multi_similarity_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        kept = complete(positive, negative)
        if epsilon is not None:
            positive, negative = informative_pairs(s, positive, negative, epsilon)
        terms = (
            tf.nn.softplus(log_sum_exp(-alpha * (s - base), positive)) / alpha
            + tf.nn.softplus(log_sum_exp(beta * (s - base), negative)) / beta
        )
        return reduce_terms(tf.boolean_mask(terms, kept), reduction, comparison)


def circle_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    relaxation: float = 0.4,
    gamma: float = 80.0,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Weights each pair by how far it is from its optimum.

    Sun et al.: Circle Loss: A Unified Perspective of Pair Similarity Optimization (arXiv
    2002.10857), eq. 6 and 8 on cosines s, relaxation m: `log(1 + sum_n exp(gamma [s_n + m]_+
    (s_n - m)) sum_p exp(-gamma [1 + m - s_p]_+ (s_p - 1 + m)))`. The weights in brackets carry no
    gradient, as in the paper.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("circle_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        for_positive = tf.stop_gradient(tf.nn.relu(1 + relaxation - s))
        for_negative = tf.stop_gradient(tf.nn.relu(s + relaxation))
        terms = tf.nn.softplus(
            log_sum_exp(-gamma * for_positive * (s - 1 + relaxation), positive)
            + log_sum_exp(gamma * for_negative * (s - relaxation), negative)
        )
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def margin_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    beta: float | TensorLike = 1.2,
    alpha: float = 0.2,
    miner: str | Callable = mine_distance_weighted,
    reduction: str = "nonzero_mean",
    references: References | None = None,
) -> tf.Tensor:
    """Moves positives within a boundary and negatives beyond it, each by a margin.

    Wu, Manmatha, Smola, Krahenbuhl: Sampling Matters in Deep Embedding Learning (arXiv 1706.07567),
    eq. 4, Euclidean distance: `max(0, alpha + y (d - beta))`, y = 1 for a positive and -1 for a
    negative. The paper normalizes the embeddings first and samples by distance.

    Args:
        beta: the boundary: a number, or `[B]` with one value per anchor, such as entries gathered
            from a variable with one per class, which is then learned.
        alpha: the margin.
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> Triplets`. Bind options,
            such as the step's seed, with `functools.partial`.

    Terms: one for (a, p) per mined triplet, then one for (a, n) per triplet. The paper divides by
    the number of nonzero terms.
    """
    with tf.name_scope("margin_loss"):
        comparison = compare(labels, embeddings, references)
        triplets = call_miner(miner, labels, embeddings, references=references)
        to_positive, to_negative = comparison.distances("euclidean", *triplets)
        dtype = to_positive.dtype
        beta = tf.cast(beta, dtype) if tf.is_tensor(beta) else tf.constant(beta, dtype)
        if beta.shape.rank != 0:
            beta = match_rows(column_tensor(beta, "beta"), comparison.embeddings, "beta", "anchors")
        boundary = beta if beta.shape.rank == 0 else tf.gather(beta, triplets.anchors)
        terms = tf.concat([to_positive - boundary, boundary - to_negative], 0)
        counted = real(tf.concat([triplets.anchors, triplets.anchors], 0))
        return reduce_terms(tf.nn.relu(alpha + terms), reduction, comparison, counted)
