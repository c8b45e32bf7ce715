"""Who is compared with whom: labels as codes, references, and the scan of rows in blocks."""

from typing import NamedTuple

import tensorflow as tf

from metriclearn.distances import DISTANCES, normalised
from metriclearn.registry import resolve

# Elements of one block of the anchor-by-reference matrix: 8 MiB in float32, enough rows for the
# product to run near its full speed, and few enough to stay near the CPU's cache for what follows.
BLOCK_ELEMENTS = 2**21


class References(NamedTuple):
    """What a batch is compared with, where that is not the batch itself (a memory, another domain).

    Attributes:
        labels: `[M]`, of the dtype of the batch's labels.
        embeddings: `[M, D]`.
        self_index: `[B]` integers, the row among the references that *is* this example of the batch
            (it is never its own positive), or -1 where there is none.
    """

    labels: tf.Tensor
    embeddings: tf.Tensor
    self_index: tf.Tensor


class Comparison(NamedTuple):
    """A batch and its references, checked and made uniform.

    Attributes:
        codes: `[B]` int32, equal where labels are equal.
        embeddings: `[B, D]`, at least float32.
        reference_codes: `[M]` int32, comparable with `codes`.
        references: `[M, D]`.
        self_index: `[B]` int32, the reference that is the anchor itself, or -1.
    """

    codes: tf.Tensor
    embeddings: tf.Tensor
    reference_codes: tf.Tensor
    references: tf.Tensor
    self_index: tf.Tensor

    def distances(self, distance, anchors, positives, negatives):
        """(d(a, p), d(a, n)), `[T]` each, of triplets of indices."""
        # In one call: the gradient of both is then one product.
        return tf.split(
            distance.of_pairs(
                self.embeddings,
                tf.concat([anchors, anchors], 0),
                self.references,
                tf.concat([positives, negatives], 0),
            ),
            2,
        )

    def normalised(self):
        """The same with embeddings and references of length 1."""
        embeddings = normalised(self.embeddings)
        alone = self.references is self.embeddings
        return self._replace(
            embeddings=embeddings,
            references=embeddings if alone else normalised(self.references),
        )


def compare(labels, embeddings, references=None):
    """Checks shapes and dtypes, and turns labels of any integer or string dtype into codes.

    Raises:
        ValueError: labels are not a vector of integers or strings, embeddings are not a matrix of
            floats, or their lengths are known and differ.
    """
    labels, embeddings = check_batch(labels, embeddings)
    batch = tf.shape(embeddings)[0]
    if references is None:
        codes = tf.unique(labels).idx
        return Comparison(codes, embeddings, codes, embeddings, tf.range(batch))
    reference_labels, reference_embeddings = check_batch(
        tf.cast(references.labels, labels.dtype), references.embeddings
    )
    codes = tf.unique(tf.concat([labels, reference_labels], 0)).idx
    return Comparison(
        codes[:batch],
        embeddings,
        codes[batch:],
        tf.cast(reference_embeddings, embeddings.dtype),
        tf.cast(references.self_index, tf.int32),
    )


def check_batch(labels, embeddings):
    """`labels` and `embeddings` as tensors; half precision is widened to float32."""
    labels, embeddings = tf.convert_to_tensor(labels), tf.convert_to_tensor(embeddings)
    discrete = labels.dtype.is_integer or labels.dtype == tf.string
    if not discrete or labels.shape.rank not in (None, 1):
        raise ValueError(
            f"labels must be a vector of integers or strings, got {labels.dtype.name} "
            f"of shape {labels.shape}"
        )
    if not embeddings.dtype.is_floating or embeddings.shape.rank not in (None, 2):
        raise ValueError(
            f"embeddings must be a matrix [batch, dimension] of floats, got "
            f"{embeddings.dtype.name} of shape {embeddings.shape}"
        )
    if not labels.shape[:1].is_compatible_with(embeddings.shape[:1]):
        raise ValueError(
            f"{labels.shape[0]} labels for {embeddings.shape[0]} embeddings: one label a row"
        )
    if embeddings.dtype.size < 4:
        embeddings = tf.cast(embeddings, tf.float32)
    return labels, embeddings


def masks(comparison):
    """Boolean `[B, M]` masks (positive, negative) of all pairs; self is in neither."""
    same = tf.equal(comparison.codes[:, None], comparison.reference_codes)
    columns = tf.range(tf.shape(comparison.reference_codes)[0])
    return same & tf.not_equal(comparison.self_index[:, None], columns), ~same


def valid_anchors(comparison):
    """Boolean `[B]`: the anchors with at least one positive and one negative reference."""
    # Counted from the labels, not seen in distances: a NaN embedding must not drop its anchor.
    same = tf.gather(class_sizes(comparison), comparison.codes)
    positives = same - tf.cast(comparison.self_index >= 0, tf.int32)
    return (positives > 0) & (same < tf.size(comparison.reference_codes))


class Block(NamedTuple):
    """What a miner sees of `b` anchors. Nearness is larger where nearer, and comparable in a row.

    Attributes:
        rows: `[b]` int32, which anchors these are.
        columns: `[b, K]` int32, the references of the anchor's class in ascending order; K is the
            size of the largest class.
        is_positive: `[b, K]` bool, false in the padding and for the anchor itself.
        positives: `[b, K]` nearness of `columns`.
        negatives: `[b, M]` nearness of all references; the dtype's lowest value (not infinity,
            which would alarm `tf.debugging.enable_check_numerics`) for those of the anchor's class.
    """

    rows: tf.Tensor
    columns: tf.Tensor
    is_positive: tf.Tensor
    positives: tf.Tensor
    negatives: tf.Tensor


def scan_rows(select, dtypes, comparison, distance, mining_dtype=None, guard=None):
    """Shows `select` all anchors, a block of rows at a time; the `[B, M]` matrix never exists.

    Memory is O(block + B D), and no gradient passes. Of a row only the product and one pass over it
    are dense: references of the anchor's class are few, and are addressed one by one.

    Args:
        select: `Block -> tuple of [b, ...]`.
        dtypes: what `select` returns, a tuple of dtypes.
        comparison: a `Comparison`.
        distance: a name in `DISTANCES` or a `Distance`.
        mining_dtype: dtype of the matrix product; None for that of the embeddings.
        guard: references of another class nearer than this distance are no negatives: they look
            like wrong labels. None for no such bound.

    Returns:
        What `select` returns, its blocks concatenated: a tuple of `[B, ...]`.
    """
    embeddings = tf.stop_gradient(comparison.embeddings)
    references = tf.stop_gradient(comparison.references)
    distance = resolve(distance, DISTANCES, "distance")
    if not references.shape[0]:
        # Rows of nothing have no hardest item: one that no anchor uses makes an empty batch legal.
        none = tf.cast(tf.equal(tf.shape(references)[0], 0), tf.int32)
        references = tf.pad(references, [[0, none], [0, 0]])
    nearness = distance.nearness(references, tf.dtypes.as_dtype(mining_dtype or embeddings.dtype))
    sizes = class_sizes(comparison)
    starts = tf.cumsum(sizes, exclusive=True)
    by_class = tf.argsort(comparison.reference_codes, stable=True)
    places = tf.range(tf.maximum(tf.reduce_max(sizes), 1))
    total, width = tf.shape(embeddings)[0], tf.shape(references)[0]

    def block(first, end):
        rows = slice(first, end)
        scores = nearness(embeddings[rows])
        codes = comparison.codes[rows]
        present = places < tf.gather(sizes, codes)[:, None]
        at = tf.where(present, tf.gather(starts, codes)[:, None] + places, 0)
        columns = tf.gather(by_class, at)
        positives = tf.gather(scores, columns, batch_dims=1)
        itself = tf.equal(columns, comparison.self_index[rows][:, None])
        anchors = tf.range(tf.shape(codes)[0])
        row_numbers = tf.broadcast_to(anchors[:, None], tf.shape(columns))
        # Once `positives` is read, nothing else holds the scores, and the update is done in place.
        with tf.control_dependencies([positives]):
            negatives = tf.tensor_scatter_nd_min(
                scores,
                tf.stack([row_numbers, columns], axis=2),
                tf.where(present, scores.dtype.min, scores.dtype.max),
            )
        if guard is not None:
            limits = distance.nearness_at(embeddings[rows], guard)[:, None]
            negatives = tf.where(negatives <= limits, negatives, negatives.dtype.min)
        is_positive = present & ~itself
        return select(Block(first + anchors, columns, is_positive, positives, negatives))

    count, static_width = embeddings.shape[0], references.shape[0]
    if count and static_width and count * static_width <= BLOCK_ELEMENTS:
        return block(0, count)

    step = tf.maximum(BLOCK_ELEMENTS // tf.maximum(width, 1), 1)
    arrays = tuple(
        tf.TensorArray(dtype, 0, dynamic_size=True, infer_shape=False) for dtype in dtypes
    )

    def body(i, arrays):
        results = block(i * step, tf.minimum((i + 1) * step, total))
        return i + 1, tuple(a.write(i, r) for a, r in zip(arrays, results, strict=True))

    # One block in flight: more would multiply the memory and fight for the same cores.
    _, arrays = tf.while_loop(
        lambda i, _: (i * step < total) | tf.equal(i, 0), body, (0, arrays), parallel_iterations=1
    )
    return tuple(array.concat() for array in arrays)


def class_sizes(comparison):
    """`[C]` int32: how many references have each code."""
    codes, reference_codes = comparison.codes, comparison.reference_codes
    bins = tf.reduce_max(tf.concat([codes, reference_codes, [0]], 0)) + 1
    return tf.math.bincount(reference_codes, minlength=bins)
