"""Losses on two views of each image, for data without labels: each image is a class.

The views are the first two examples of each class; further examples, and classes with one example,
are not used. There are no negatives: with labels, `supervised_contrastive_loss` supersedes these
losses. Arguments and errors are described in `metriclearn.losses.pairwise`.
"""

import tensorflow as tf

from metriclearn.distances import normalize
from metriclearn.inputs import TensorLike, float_matrix, match_rows
from metriclearn.losses.reductions import mean_of, reduce_terms
from metriclearn.pairs import compare


def vicreg_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> tf.Tensor:
    """Moves the two views of each class together; keeps the dimensions spread and uncorrelated.

    Bardes, Ponce, LeCun: VICReg (arXiv 2105.04906), eq. 1-6: `invariance` times the mean squared
    difference of the views, plus per view `variance` times the mean of `max(0, 1 - sqrt(var +
    epsilon)) / 2` over the dimensions, plus `covariance` times the sum of squared covariances of
    different dimensions, divided by D. Variances divide by N - 1, as in the paper's code.

    There is one value per batch, so there is no reduction; 0 with fewer than two pairs of views.
    """
    with tf.name_scope("vicreg_loss"):
        comparison = compare(labels, embeddings)
        views, paired = _two_views(comparison.codes, comparison.embeddings)
        weights = tf.cast(paired, views[0].dtype)[:, None]
        count = tf.reduce_sum(weights)
        width = tf.cast(tf.shape(views[0])[1], weights.dtype)
        difference = tf.reduce_sum(weights * (views[0] - views[1]) ** 2)
        value = invariance * tf.math.divide_no_nan(difference, count * width)
        for view in views:
            centered = _centered(view, weights)
            products = tf.matmul(centered, centered, transpose_a=True)
            covariances = tf.math.divide_no_nan(products, count - 1)
            variances = tf.linalg.diag_part(covariances)
            value += variance * mean_of(tf.nn.relu(1 - tf.sqrt(variances + epsilon)) / 2)
            others = tf.linalg.set_diag(covariances, tf.zeros_like(variances))
            value += covariance * tf.math.divide_no_nan(tf.reduce_sum(others**2), width)
        return reduce_terms(tf.where(count > 1, value, 0)[None], "sum", comparison)


def barlow_twins_loss(
    labels: TensorLike, embeddings: TensorLike, *, redundancy: float = 5e-3
) -> tf.Tensor:
    """Makes each dimension equal in both views, and uncorrelated with every other dimension.

    Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins (arXiv 2103.03230), eq. 1-2: `sum_i (1 -
    C_ii)^2 + redundancy sum_{i != j} C_ij^2`, C the `[D, D]` correlations over the batch of
    dimensions of one view with those of the other. A constant dimension has no correlation. The
    paper uses wide embeddings (D = 8192) and large batches.

    Args:
        redundancy: the paper's lambda.

    There is one value per batch, so there is no reduction; 0 with fewer than two pairs of views.
    """
    with tf.name_scope("barlow_twins_loss"):
        comparison = compare(labels, embeddings)
        views, paired = _two_views(comparison.codes, comparison.embeddings)
        weights = tf.cast(paired, views[0].dtype)[:, None]
        one, other = (normalize(tf.transpose(_centered(view, weights))) for view in views)
        correlations = tf.matmul(one, other, transpose_b=True)
        squares = tf.linalg.set_diag(
            redundancy * correlations**2, (1 - tf.linalg.diag_part(correlations)) ** 2
        )
        value = tf.where(tf.reduce_sum(weights) > 1, tf.reduce_sum(squares), 0)
        return reduce_terms(value[None], "sum", comparison)


def simsiam_loss(
    labels: TensorLike,
    embeddings: TensorLike,
    *,
    projections: TensorLike | None = None,
    reduction: str = "mean",
) -> tf.Tensor:
    """Makes a predictor's output for one view equal to the projection of the other view.

    Chen, He: Exploring Simple Siamese Representation Learning (arXiv 2011.10566), eq. 1-3:
    `-(cos(p1, z2) + cos(p2, z1)) / 2`, from 1 to -1, without gradient through z. Without a
    predictor in the model, everything collapses to one point: watch `embedding_statistics`.

    Args:
        embeddings: `[B, D]`, p, the predictor's output for the projections.
        projections: `[B, D]`, z; None: the embeddings.

    Terms: one per pair of views, in the order of their classes.
    """
    with tf.name_scope("simsiam_loss"):
        comparison = compare(labels, embeddings)
        p = comparison.embeddings
        z = p if projections is None else float_matrix(projections, "projections")
        z = tf.cast(tf.stop_gradient(match_rows(z, p, "projections", "embeddings")), p.dtype)
        predicted, paired = _two_views(comparison.codes, normalize(p))
        projected, _ = _two_views(comparison.codes, normalize(z))
        cosines = predicted[0] * projected[1] + predicted[1] * projected[0]
        terms = tf.boolean_mask(-tf.reduce_sum(cosines, axis=1) / 2, paired)
        return reduce_terms(terms, reduction, comparison)


def _centered(view: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """`[B, D]`: rows of weight 1 minus their mean; rows of weight 0 are 0."""
    total = tf.reduce_sum(weights * view, axis=0)
    return weights * (view - tf.math.divide_no_nan(total, tf.reduce_sum(weights)))


def _two_views(codes: tf.Tensor, x: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """(`[B, D]` first and second example of each class, `[B]` bool: both exist)."""
    count = tf.shape(codes)[0]  # at least the number of classes
    rows = tf.range(count)
    is_first = tf.equal(tf.gather(tf.math.unsorted_segment_min(rows, codes, count), codes), rows)
    second = tf.math.unsorted_segment_min(tf.where(is_first, count, rows), codes, count)
    is_second = tf.equal(tf.gather(second, codes), rows)
    views = [
        tf.math.unsorted_segment_sum(tf.where(mask[:, None], x, tf.zeros_like(x)), codes, count)
        for mask in (is_first, is_second)
    ]
    return views, second < count  # the minimum of nothing is the largest integer
