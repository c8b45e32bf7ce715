"""Losses against one learned vector a class: classification that trains an embedding.

Shared arguments:
    labels: `[B]` integers in [0, C): the row of the proxies that is the example's class.
    embeddings: `[B, D]` floating point; half precision is computed in float32.
    proxies: `[C, D]`, usually a trainable variable; gradients reach it.
    scale: what multiplies cosines before the softmax (the inverse temperature).
    reduction: over the examples: 'mean', 'nonzero_mean', 'sum', 'none'.
All are defined on cosines, so embeddings and proxies are normalised *in the formula*. They return a
scalar (`[B]` for 'none'), 0 for an empty batch, and raise ValueError for labels that are not
integers and for unknown names. A label outside [0, C) gives NaN, as TensorFlow's cross-entropy
does.
"""

import math

import tensorflow as tf

from metriclearn.distances import normalised
from metriclearn.losses.reductions import reduce_terms
from metriclearn.pairs import compare


def normalised_softmax_loss(labels, embeddings, proxies, *, scale=20.0, reduction="mean"):
    """Softmax cross-entropy of the cosines to all proxies.

    Zhai, Wu: Classification is a Strong Baseline for Deep Metric Learning (arXiv 1811.12649), eq.
    3.
    """
    with tf.name_scope("normalised_softmax_loss"):
        comparison, cosines, _ = _cosines(labels, embeddings, proxies)
        return _cross_entropy(labels, scale * cosines, reduction, comparison)


def cosface_loss(labels, embeddings, proxies, *, margin=0.35, scale=64.0, reduction="mean"):
    """Softmax cross-entropy in which the right class must win by a margin of cosine.

    Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition (arXiv 1801.09414),
    eq. 4: the right class's cosine is replaced by `cos - margin`.
    """
    with tf.name_scope("cosface_loss"):
        comparison, cosines, right = _cosines(labels, embeddings, proxies)
        logits = scale * (cosines - margin * tf.cast(right, cosines.dtype))
        return _cross_entropy(labels, logits, reduction, comparison)


def arcface_loss(labels, embeddings, proxies, *, margin=0.5, scale=64.0, reduction="mean"):
    """Softmax cross-entropy in which the right class must win by a margin of angle.

    Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition
    (arXiv 1801.07698), eq. 3: the right class's cosine is replaced by `cos(angle + margin)`, margin
    in radians. Beyond `angle > pi - margin`, where that would rise again, it goes on as
    `cos - margin sin(margin)`, as the authors' code does.
    """
    with tf.name_scope("arcface_loss"):
        comparison, cosines, right = _cosines(labels, embeddings, proxies)
        # cos(t + m) = cos t cos m - sin t sin m; the clip keeps the root's gradient finite at 0 and
        # pi, where sin t has none.
        sines = tf.sqrt(tf.maximum(1 - cosines**2, 1e-12))
        shifted = cosines * math.cos(margin) - sines * math.sin(margin)
        beyond = cosines - margin * math.sin(margin)
        wanted = tf.where(cosines > math.cos(math.pi - margin), shifted, beyond)
        logits = scale * tf.where(right, wanted, cosines)
        return _cross_entropy(labels, logits, reduction, comparison)


def proxy_nca_loss(labels, embeddings, proxies, *, scale=1.0, reduction="mean"):
    """Nearer to its own proxy than to the others, by squared distance on the sphere.

    Movshovitz-Attias, Toshev, Leung, Ioffe, Singh: No Fuss Distance Metric Learning using Proxies
    (arXiv 1703.07464), eq. 4: `-log(exp(-d(x, p)) / sum over the *other* proxies of exp(-d(x,
    z)))`, d = scale |x - z|^2 of normalised vectors. It can be negative. With fewer than two
    proxies: 0.
    """
    with tf.name_scope("proxy_nca_loss"):
        comparison, cosines, right = _cosines(labels, embeddings, proxies)
        logits = -scale * (2 - 2 * cosines)
        own = tf.reduce_sum(tf.where(right, logits, 0), axis=1)
        lowest = tf.constant(logits.dtype.min / 4, logits.dtype)
        others = tf.reduce_logsumexp(tf.where(right, lowest, logits), axis=1)
        terms = tf.where(tf.shape(cosines)[1] > 1, others - own, tf.zeros_like(own))
        return reduce_terms(terms, reduction, comparison)


def proxy_anchor_loss(labels, embeddings, proxies, *, margin=0.1, scale=32.0):
    """Each proxy is an anchor that the batch's examples are drawn to and pushed from.

    Kim, Kim, Cho, Kwak: Proxy Anchor Loss for Deep Metric Learning (arXiv 2003.13911), eq. 4:
    the mean over proxies with a positive in the batch of `log(1 + sum_pos exp(-scale (s -
    margin)))` plus the mean over all proxies of `log(1 + sum_neg exp(scale (s + margin)))`. A
    scalar always: its terms belong to proxies.
    """
    with tf.name_scope("proxy_anchor_loss"):
        comparison, cosines, right = _cosines(labels, embeddings, proxies)
        lowest = tf.constant(cosines.dtype.min / 4, cosines.dtype)
        pull = tf.where(right, -scale * (cosines - margin), lowest)
        push = tf.where(right, lowest, scale * (cosines + margin))
        pulled = tf.boolean_mask(
            tf.nn.softplus(_column_log_sum_exp(pull)), tf.reduce_any(right, axis=0)
        )
        pushed = tf.nn.softplus(_column_log_sum_exp(push))
        return reduce_terms(pulled, "mean", comparison) + reduce_terms(pushed, "mean", comparison)


def _cosines(labels, embeddings, proxies):
    """(comparison, `[B, C]` cosines, `[B, C]` bool: the example's own class)."""
    comparison = compare(labels, embeddings)
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_integer:
        raise ValueError(f"labels must be integers, the rows of proxies; got {labels.dtype.name}")
    proxies = tf.cast(tf.convert_to_tensor(proxies), comparison.embeddings.dtype)
    cosines = tf.matmul(normalised(comparison.embeddings), normalised(proxies), transpose_b=True)
    classes = tf.range(tf.shape(proxies, out_type=tf.int64)[0])
    return comparison, cosines, tf.equal(tf.cast(labels, tf.int64)[:, None], classes)


def _cross_entropy(labels, logits, reduction, comparison):
    labels = tf.cast(labels, tf.int64)
    terms = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return reduce_terms(terms, reduction, comparison)


def _column_log_sum_exp(values):
    # A row of the lowest value keeps the maximum defined for an empty batch.
    floor = tf.fill([1, tf.shape(values)[1]], tf.constant(values.dtype.min / 4, values.dtype))
    return tf.reduce_logsumexp(tf.concat([values, floor], 0), axis=0)
