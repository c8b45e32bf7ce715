"""Losses that compare an anchor's positives with its negatives by a softmax.

Arguments, returns and errors are described in `metriclearn.losses.pairwise`. The cost is one
`[B, M]` matrix, except for the angular loss.
"""

import math

import tensorflow as tf

from metriclearn.distances import COSINE, DOT, Distance, are_calm
from metriclearn.inputs import TensorLike
from metriclearn.losses.matrices import cosines, log_sum_exp, measure, of_complete
from metriclearn.losses.reductions import reduce_terms
from metriclearn.pairs import References, compare, masks


def n_pairs_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Compares each positive pair with all negatives of its anchor, by dot products.

    Sohn: Improved Deep Metric Learning with Multi-class N-pair Loss Objective (NIPS 2016), eq. 4:
    `log(1 + sum_n exp(a.n - a.p))`. The paper also regularizes the length of the embeddings;
    this loss does not.

    Terms: one per positive pair (a, p) whose anchor has a negative.
    """
    with tf.name_scope("n_pairs_loss"):
        comparison = compare(labels, embeddings, references)
        positive, negative = masks(comparison)
        x, y = comparison.embeddings, comparison.references

        def terms_in(dtype: tf.DType) -> tf.Tensor:
            rows = tf.cast(x, dtype)
            distances = DOT.pairwise(rows, rows if x is y else tf.cast(y, dtype))
            against = log_sum_exp(-distances, negative)[:, None]
            return tf.cast(tf.nn.softplus(against + distances), x.dtype)

        # Products of long rows can exceed float32 while their differences do not.
        terms = tf.cond(are_calm(x, y), lambda: terms_in(x.dtype), lambda: terms_in(tf.float64))
        return reduce_terms(_of_pairs(terms, positive, negative), reduction, comparison)


def nt_xent_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    temperature: float = 0.07,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Cross-entropy of each positive pair against the anchor's negatives, by cosine.

    Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual
    Representations (SimCLR, arXiv 2002.05709), eq. 1, for any number of positives:
    `-log(exp(s_p / t) / (exp(s_p / t) + sum_n exp(s_n / t)))`, t the temperature. An n-pairs loss
    on cosines. With labels, `supervised_contrastive_loss` supersedes it: there, the positives of an
    anchor also share a softmax.

    Terms: one per positive pair (a, p) whose anchor has a negative.
    """
    with tf.name_scope("nt_xent_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        logits = s / temperature
        terms = tf.nn.softplus(log_sum_exp(logits, negative)[:, None] - logits)
        return reduce_terms(_of_pairs(terms, positive, negative), reduction, comparison)


def tuplet_margin_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    margin: float = 0.1,
    scale: float = 64.0,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """An n-pairs loss on cosines with an angular margin for the positive.

    Yu, Tao: Deep Metric Learning with Tuplet Margin Loss (ICCV 2019): `log(1 + sum_n
    exp(scale (cos t_n - cos(t_p - margin))))`, t the angles to the anchor, margin in radians. The
    paper also adds the intra-pair variance (`intra_pair_variance_loss`).

    Terms: one per positive pair (a, p) whose anchor has a negative.
    """
    with tf.name_scope("tuplet_margin_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        # cos(t - m) = cos t cos m + sin t sin m; the floor keeps the root's gradient finite.
        sines = tf.sqrt(tf.maximum(1 - s**2, 1e-12))
        wanted = s * math.cos(margin) + sines * math.sin(margin)
        terms = tf.nn.softplus(log_sum_exp(scale * s, negative)[:, None] - scale * wanted)
        return reduce_terms(_of_pairs(terms, positive, negative), reduction, comparison)


def nca_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    scale: float = 1.0,
    distance: str | Distance = "squared",
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """The log probability that a neighbor drawn by a softmax of distances has the anchor's label.

    Goldberger, Roweis, Hinton, Salakhutdinov: Neighbourhood Components Analysis (NIPS 2004), the
    objective g: `-log(sum_p exp(-scale d(a, p)) / sum_{j != a} exp(-scale d(a, j)))`. One
    near positive is enough; `supervised_contrastive_loss` attracts all positives and supersedes it
    if classes are compact.

    Terms: one per anchor that has a positive and a negative.
    """
    with tf.name_scope("nca_loss"):
        comparison, positive, negative, distances = measure(
            labels, embeddings, distance, references
        )
        against = log_sum_exp(-scale * distances, negative)
        terms = tf.nn.softplus(against - log_sum_exp(-scale * distances, positive))
        return reduce_terms(of_complete(terms, positive, negative), reduction, comparison)


def instance_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    scale: float = 64.0,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Cross-entropy of recognizing the class's first example among all examples.

    After Zheng et al.: Dual-Path Convolutional Image-Text Embeddings with Instance Loss (arXiv
    1711.05535), with the batch in place of a classifier: `-log(exp(scale s_f) / sum_j exp(scale
    s_j))`, s cosines, f the first reference of the anchor's class. If labels are all distinct, f
    is the anchor. `supervised_contrastive_loss` supersedes it: there no example is its own
    positive, and all positives count.

    Terms: one per example whose class is among the references, and which has a negative.
    """
    with tf.name_scope("instance_loss"):
        comparison, _, negative, s = cosines(labels, embeddings, references)
        same = ~negative
        columns = tf.range(tf.shape(same)[1])
        first = tf.reduce_min(tf.where(same, columns, columns.dtype.max), axis=1, keepdims=True)
        own = tf.reduce_sum(tf.where(tf.equal(columns, first), s, tf.zeros_like(s)), axis=1)
        terms = log_sum_exp(scale * s, tf.ones_like(same)) - scale * own
        return reduce_terms(of_complete(terms, same, negative), reduction, comparison)


def angular_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    angle: float = 40.0,
    reduction: str = "mean",
    references: References | None = None,
) -> tf.Tensor:
    """Bounds the angle at the negative in the triangle of a triplet.

    Wang, Zhou, Wen, Liu, Lin: Deep Metric Learning with Angular Loss (arXiv 1708.01682):
    `log(1 + sum_n exp(4 tan^2(angle) (a + p).n - 2 (1 + tan^2(angle)) a.p))` on normalized
    embeddings, angle in degrees. The paper adds it to the n-pairs loss. It takes O(pairs M) time
    and memory; `multi_similarity_loss` weighs the same examples in O(B M) and supersedes it.

    Terms: one per positive pair (a, p) whose anchor has a negative.
    """
    with tf.name_scope("angular_loss"):
        comparison, positive, negative, s = cosines(labels, embeddings, references)
        alone = comparison.references is comparison.embeddings
        among = s if alone else 1 - COSINE.pairwise(*[comparison.references] * 2)
        pairs = tf.where(positive & tf.reduce_any(negative, axis=1, keepdims=True))
        anchors = pairs[:, 0]
        tangent = math.tan(math.radians(angle)) ** 2
        sums = 4 * tangent * (tf.gather(s, anchors) + tf.gather(among, pairs[:, 1]))
        own = 2 * (1 + tangent) * tf.gather_nd(s, pairs)
        terms = tf.nn.softplus(log_sum_exp(sums, tf.gather(negative, anchors)) - own)
        return reduce_terms(terms, reduction, comparison)


def _of_pairs(terms: tf.Tensor, positive: tf.Tensor, negative: tf.Tensor) -> tf.Tensor:
    """The terms of the positive pairs whose anchor has a negative."""
    return tf.boolean_mask(terms, positive & tf.reduce_any(negative, axis=1, keepdims=True))
