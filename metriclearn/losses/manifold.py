"""A loss on similarities from a random walk over the batch and its proxies."""

import tensorflow as tf

from metriclearn.distances import normalize
from metriclearn.inputs import TensorLike, float_matrix
from metriclearn.losses.proxies import nan_if_unknown, own_cosines
from metriclearn.losses.reductions import reduce_terms


def manifold_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    proxies: TensorLike,
    *,
    context_weight: float = 1.0,
    restart: float = 0.2,
    margin: float = 5e-4,
    reduction: str = "mean",
) -> tf.Tensor:
    """Ranks proxies by a random walk over all examples and proxies.

    Aziere, Todorovic: Ensemble Deep Manifold Similarity Learning Using Hard Proxies (CVPR 2019).
    With S_ij = exp(2 max(0, cos)) off the diagonal and its symmetric normalization N, the walk is
    F = restart (I - (1 - restart) N)^-1. The intrinsic loss is `log(1 + sum exp(F_ic - F_iy +
    margin))` over the proxies c whose exponent is not negative; the context loss, weighted by
    `context_weight`, is the same on the cosines of rows of F. O((B + C)^3) time, so for few
    proxies; `proxy_anchor_loss` also weighs the batch's relations, in O(B C), and supersedes it.

    Args:
        labels, embeddings, proxies, reduction: see `metriclearn.losses.proxies`.
        restart: probability of returning to the start at each step, 0 to 1.
    """
    with tf.name_scope("manifold_loss"):
        comparison, cosines, own = own_cosines(labels, embeddings, proxies)
        x = comparison.embeddings
        proxies = tf.cast(float_matrix(proxies, "proxies"), x.dtype)
        nodes = normalize(tf.concat([x, proxies], 0))
        # A NaN would make the decomposition raise; it is added to the result instead.
        nodes = tf.where(tf.math.is_finite(nodes), nodes, tf.zeros_like(nodes))
        broken = tf.stop_gradient(tf.reduce_sum(0 * cosines))
        similarity = tf.exp(2 * tf.nn.relu(tf.matmul(nodes, nodes, transpose_b=True)))
        similarity = tf.linalg.set_diag(similarity, tf.zeros_like(similarity[:, 0]))
        scale = tf.math.rsqrt(tf.maximum(tf.reduce_sum(similarity, axis=1), 1e-12))
        steps = (1 - restart) * similarity * scale[:, None] * scale
        eye = tf.eye(tf.shape(nodes)[0], dtype=x.dtype)
        # Symmetric, with eigenvalues from `restart` on.
        walk = restart * tf.linalg.cholesky_solve(tf.linalg.cholesky(eye - steps), eye)
        # Counted from the end, where the number is known: XLA needs that if the batch's is not.
        classes = proxies.shape[0] or tf.shape(proxies)[0]

        def terms(scores: tf.Tensor) -> tf.Tensor:
            true = tf.reduce_sum(tf.where(own, scores, 0), axis=1, keepdims=True)
            excess = scores - true + margin
            hard = ~own & (excess >= 0)
            return tf.math.log1p(tf.reduce_sum(tf.where(hard, tf.exp(excess), 0), axis=1))

        rows = normalize(walk)
        context = tf.matmul(rows[:-classes], rows[-classes:], transpose_b=True)
        values = terms(walk[:-classes, -classes:]) + context_weight * terms(context)
        return reduce_terms((values + broken) * nan_if_unknown(own, values), reduction, comparison)
