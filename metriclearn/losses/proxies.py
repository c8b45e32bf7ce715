"""Losses with one learned vector per class (proxy): classification that trains an embedding.

Common arguments:
    labels: `[B]` or `[B, 1]` integers in [0, C), or whole floats: the row of the class's proxy.
    embeddings: `[B, D]` floating point; half precision is computed in float32.
    proxies: `[C, D]`, usually a trainable variable; it gets gradients. Losses with several
        vectors per class take `[C, K, D]`; there `[C, D]` means K = 1.
    scale: multiplies cosines before the softmax (the inverse temperature).
    reduction: over the examples: 'mean', 'nonzero_mean', 'sum', 'none'.
All but two, which say so, are defined on cosines, so embeddings and proxies are normalized *in the
formula*. They return a scalar (`[B]` for 'none'), 0 for an empty batch. They raise ValueError for
unknown names, and for labels that are not integers or are known to be outside of [0, C). If values
are not known when the graph is built, a label outside gives NaN.
"""

import math

import tensorflow as tf

from metriclearn.distances import normalize
from metriclearn.inputs import TensorLike, check_batch, float_matrix
from metriclearn.losses.reductions import reduce_terms
from metriclearn.pairs import Comparison, compare


def normalised_softmax_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    scale: float = 20.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """Softmax cross-entropy of the cosines to all proxies.

    Zhai, Wu: Classification is a Strong Baseline for Deep Metric Learning (arXiv 1811.12649), eq.
    3.
    """
    with tf.name_scope("normalised_softmax_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        return _cross_entropy(own, scale * cosines, reduction, comparison)


def cosface_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: float = 0.35,
    scale: float = 64.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """Softmax cross-entropy with a cosine margin for the true class.

    Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition (arXiv 1801.09414),
    eq. 4: the true class's cosine is replaced by `cos - margin`.
    """
    with tf.name_scope("cosface_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        logits = scale * (cosines - margin * tf.cast(own, cosines.dtype))
        return _cross_entropy(own, logits, reduction, comparison)


def arcface_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: float = 0.5,
    scale: float = 64.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """Softmax cross-entropy with an angular margin for the true class.

    Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition
    (arXiv 1801.07698), eq. 3: the true class's cosine is replaced by `cos(angle + margin)`, margin
    in radians. For `angle > pi - margin`, where this would increase again, it is
    `cos - margin sin(margin)`, as in the authors' code.
    """
    with tf.name_scope("arcface_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        return _arcface(cosines, own, margin, scale, reduction, comparison)


def sub_center_arcface_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: float = 0.5,
    scale: float = 64.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """ArcFace with the nearest of K vectors per class; examples with wrong labels can use another
    one.

    Deng, Guo, Liu, Gong, Zafeiriou: Sub-center ArcFace: Boosting Face Recognition by Large-scale
    Noisy Web Faces (ECCV 2020): `arcface_loss` on `max_k cos(x, w_ck)`; proxies `[C, K, D]`.
    """
    with tf.name_scope("sub_center_arcface_loss"):
        comparison, cosines, own = _center_cosines(labels, embeddings, proxies)
        nearest = tf.reduce_max(cosines, axis=2)
        return _arcface(nearest, own, margin, scale, reduction, comparison)


def soft_triple_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: float = 0.01,
    scale: float = 20.0,
    temperature: float = 0.1,
    reduction: str = "mean",
) -> tf.Tensor:
    """CosFace with K vectors per class, weighted by a softmax: for classes of varied appearance.

    Qian, Shang, Sun, Hu, Li, Jin: SoftTriple Loss: Deep Metric Learning Without Triplet Sampling
    (arXiv 1909.05235): `cosface_loss` on `sum_k softmax_k(s_ck / temperature) s_ck`, s the
    cosines to proxies `[C, K, D]`. The paper's regularizer, which merges similar vectors of a
    class, is not included.
    """
    with tf.name_scope("soft_triple_loss"):
        comparison, cosines, own = _center_cosines(labels, embeddings, proxies)
        relaxed = tf.reduce_sum(tf.nn.softmax(cosines / temperature, axis=2) * cosines, axis=2)
        logits = scale * (relaxed - margin * tf.cast(own, cosines.dtype))
        return _cross_entropy(own, logits, reduction, comparison)


def large_margin_softmax_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: int = 4,
    scale: float = 1.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """Softmax cross-entropy of dot products, with the angle of the true class multiplied by m.

    Liu, Wen, Yu, Yang: Large-Margin Softmax Loss for Convolutional Neural Networks (arXiv
    1612.02295): the logits are `scale |x| |w| cos t`, for the true class
    `scale |x| |w| psi(t)`, psi(t) = (-1)^k cos(m t) - 2 k for t in [k pi / m, (k + 1) pi / m], m
    the margin. It depends on lengths. `arcface_loss`, whose target is smooth, supersedes it.
    """
    with tf.name_scope("large_margin_softmax_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        proxies = tf.cast(tf.convert_to_tensor(proxies), cosines.dtype)
        lengths = _lengths(comparison.embeddings)[:, None] * _lengths(proxies)
        logits = scale * lengths * tf.where(own, _multiple_angle(cosines, margin), cosines)
        return _cross_entropy(own, logits, reduction, comparison)


def sphereface_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: int = 4,
    scale: float = 1.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """The large-margin softmax with proxies of length 1: `scale |x| psi(t)`.

    Liu, Wen, Yu, Li, Raj, Song: SphereFace: Deep Hypersphere Embedding for Face Recognition (arXiv
    1704.08063); psi as in `large_margin_softmax_loss`. It depends on the length of the embedding.
    `arcface_loss`, whose target is smooth, supersedes it.
    """
    with tf.name_scope("sphereface_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        lengths = _lengths(comparison.embeddings)[:, None]
        logits = scale * lengths * tf.where(own, _multiple_angle(cosines, margin), cosines)
        return _cross_entropy(own, logits, reduction, comparison)


def p2sgrad_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    reduction: str = "mean",
) -> tf.Tensor:
    """Squared error of the cosines to all proxies: 1 for the class's proxy, 0 for the others.

    Zhang et al.: P2SGrad: Refined Gradients for Optimizing Deep Face Models (arXiv 1905.02479),
    whose gradients, eq. 11, are those of `mean_c (cos t_c - [c is the label])^2`. It has neither
    margin nor scale to tune. With many classes the other proxies dominate the mean;
    `normalised_softmax_loss` weights the nearest of them.
    """
    with tf.name_scope("p2sgrad_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        terms = tf.reduce_mean((cosines - tf.cast(own, cosines.dtype)) ** 2, axis=1)
        return reduce_terms(terms * nan_if_unknown(own, terms), reduction, comparison)


def proxy_nca_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    scale: float = 1.0,
    reduction: str = "mean",
) -> tf.Tensor:
    """Moves examples nearer to their proxy than to others, by squared distance on the sphere.

    Movshovitz-Attias, Toshev, Leung, Ioffe, Singh: No Fuss Distance Metric Learning using Proxies
    (arXiv 1703.07464), eq. 4: `-log(exp(-d(x, p)) / sum over the *other* proxies of exp(-d(x,
    z)))`, d = scale |x - z|^2 of normalized vectors. It can be negative. With fewer than two
    proxies it is 0.
    """
    with tf.name_scope("proxy_nca_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        logits = -scale * (2 - 2 * cosines)
        own_logit = tf.reduce_sum(tf.where(own, logits, 0), axis=1)
        lowest = tf.constant(logits.dtype.min / 4, logits.dtype)
        others = tf.reduce_logsumexp(tf.where(own, lowest, logits), axis=1)
        terms = tf.where(tf.shape(cosines)[1] > 1, others - own_logit, tf.zeros_like(others))
        return reduce_terms(terms * nan_if_unknown(own, terms), reduction, comparison)


def proxy_anchor_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    margin: float = 0.1,
    scale: float = 32.0,
) -> tf.Tensor:
    """Moves examples towards their proxy and away from the others.

    Kim, Kim, Cho, Kwak: Proxy Anchor Loss for Deep Metric Learning (arXiv 2003.13911), eq. 4:
    the mean over proxies with a positive in the batch of `log(1 + sum_pos exp(-scale (s -
    margin)))` plus the mean over all proxies of `log(1 + sum_neg exp(scale (s + margin)))`. The
    terms are per proxy, so it always returns a scalar.
    """
    with tf.name_scope("proxy_anchor_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        lowest = tf.constant(cosines.dtype.min / 4, cosines.dtype)
        pull = tf.where(own, -scale * (cosines - margin), lowest)
        push = tf.where(own, lowest, scale * (cosines + margin))
        pulled = tf.boolean_mask(
            tf.nn.softplus(_column_log_sum_exp(pull)), tf.reduce_any(own, axis=0)
        )
        pushed = tf.nn.softplus(_column_log_sum_exp(push))
        known = tf.reduce_prod(nan_if_unknown(own, cosines))
        return known * (
            reduce_terms(pulled, "mean", comparison) + reduce_terms(pushed, "mean", comparison)
        )


def _arcface(
    cosines: tf.Tensor,
    own: tf.Tensor,
    margin: float,
    scale: float,
    reduction: str,
    comparison: Comparison,
) -> tf.Tensor:
    # cos(t + m) = cos t cos m - sin t sin m. The clip keeps the root's gradient finite at 0 and
    # pi, where sin t has none.
    sines = tf.sqrt(tf.maximum(1 - cosines**2, 1e-12))
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    beyond = cosines - margin * math.sin(margin)
    wanted = tf.where(cosines > math.cos(math.pi - margin), shifted, beyond)
    logits = scale * tf.where(own, wanted, cosines)
    return _cross_entropy(own, logits, reduction, comparison)


def own_cosines(
    labels: TensorLike, embeddings: TensorLike, proxies: TensorLike
) -> tuple[Comparison, tf.Tensor, tf.Tensor]:
    """(comparison, `[B, C]` cosines, `[B, C]` bool: the example's own class)."""
    proxies = float_matrix(proxies, "proxies")
    comparison, cosines, own = _center_cosines(labels, embeddings, proxies)
    return comparison, cosines[:, :, 0], own


def _center_cosines(
    labels: TensorLike, embeddings: TensorLike, proxies: TensorLike
) -> tuple[Comparison, tf.Tensor, tf.Tensor]:
    """The same for proxies `[C, K, D]` or `[C, D]`; cosines `[B, C, K]`."""
    labels, embeddings = check_batch(labels, embeddings)
    if labels.dtype == tf.string:
        raise ValueError("labels must be integers, the rows of proxies; got string")
    proxies = tf.convert_to_tensor(proxies)
    if proxies.shape.rank == 2:
        proxies = proxies[:, None]
    if proxies.shape.rank != 3:
        raise ValueError(f"proxies must be a matrix [C, D] or [C, K, D], got {proxies.shape}")
    shape = zip(proxies.shape, tf.unstack(tf.shape(proxies)), strict=True)
    classes, centers, width = (size if known is None else known for known, size in shape)
    rows = float_matrix(tf.reshape(proxies, [-1, width]), "proxies")
    known, count = tf.get_static_value(labels), proxies.shape[0]
    if known is not None and count is not None and not all(0 <= int(v) < count for v in known):
        raise ValueError(
            f"labels must be rows of the {count} proxies, got {min(known)} to {max(known)}"
        )
    rows = normalize(tf.cast(rows, embeddings.dtype))
    cosines = tf.matmul(normalize(embeddings), rows, transpose_b=True)
    own = tf.equal(tf.cast(labels, tf.int64)[:, None], tf.range(tf.cast(classes, tf.int64)))
    cosines = tf.reshape(cosines, [-1, classes, centers])
    return compare(labels, embeddings), cosines, own


def _lengths(x: tf.Tensor) -> tf.Tensor:
    """`[N]`: the rows' lengths, with gradient 0 for a zero row."""
    return tf.reduce_sum(x * tf.stop_gradient(normalize(x)), axis=1)


def _multiple_angle(cosines: tf.Tensor, margin: int) -> tf.Tensor:
    """psi of Liu et al., which continues cos(margin t) so that it falls from 0 to pi."""
    cosines = tf.clip_by_value(cosines, -1, 1)
    previous, current = tf.ones_like(cosines), cosines  # Chebyshev: cos(m t) in powers of cos t
    for _ in range(margin - 1):
        previous, current = current, 2 * cosines * current - previous
    k = tf.stop_gradient(tf.floor(tf.acos(cosines) * (margin / math.pi)))
    return (1 - 2 * (k % 2)) * current - 2 * k


def nan_if_unknown(own: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """`[B]`: 1, or NaN for examples whose label is not a row of the proxies."""
    known = tf.cast(tf.reduce_any(own, axis=1), like.dtype)
    return known / known


def _cross_entropy(
    own: tf.Tensor, logits: tf.Tensor, reduction: str, comparison: Comparison
) -> tf.Tensor:
    terms = tf.nn.softmax_cross_entropy_with_logits(tf.cast(own, logits.dtype), logits)
    return reduce_terms(terms * nan_if_unknown(own, terms), reduction, comparison)


def _column_log_sum_exp(values: tf.Tensor) -> tf.Tensor:
    # A row of the lowest value keeps the maximum defined for an empty batch.
    floor = tf.fill([1, tf.shape(values)[1]], tf.constant(values.dtype.min / 4, values.dtype))
    return tf.reduce_logsumexp(tf.concat([values, floor], 0), axis=0)
