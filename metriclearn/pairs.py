"""Who is compared with whom: labels as codes, references, and the scan of rows in blocks."""

from typing import NamedTuple

import tensorflow as tf

# Elements of one block of the anchor-by-reference matrix: a few MB, which stay in the CPU's cache
# between the product and the passes that follow it.
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


def masks(comparison, rows=slice(None)):
    """Boolean `[b, M]` masks (positive, negative) of the anchors in `rows`; self is in neither."""
    same = tf.equal(comparison.codes[rows][:, None], comparison.reference_codes)
    columns = tf.range(tf.shape(comparison.reference_codes)[0])
    itself = tf.equal(comparison.self_index[rows][:, None], columns)
    return same & ~itself, ~same


def valid_anchors(comparison):
    """Boolean `[B]`: the anchors with at least one positive and one negative reference."""
    # Counted from the labels, not seen in distances: a NaN embedding must not drop its anchor.
    codes, reference_codes = comparison.codes, comparison.reference_codes
    total = tf.size(reference_codes)
    bins = tf.reduce_max(tf.concat([codes, reference_codes, [0]], 0)) + 1
    same = tf.gather(tf.math.bincount(reference_codes, minlength=bins), codes)
    positives = same - tf.cast(comparison.self_index >= 0, tf.int32)
    return (positives > 0) & (same < total)


def scan_rows(select, dtypes, comparison, distance, mining_dtype=None):
    """Applies `select` to the nearness of all anchors to all references, a block of rows at a time.

    The whole `[B, M]` matrix never exists: memory is O(block), and no gradient passes.

    Args:
        select: `(nearness [b, M], positive [b, M], negative [b, M]) -> tuple of [b, ...]`. Nearness
            is larger where nearer; the masks are boolean.
        dtypes: what `select` returns, a tuple of dtypes.
        comparison: a `Comparison`.
        distance: a `Distance`.
        mining_dtype: dtype of the matrix product; None for that of the embeddings.

    Returns:
        What `select` returns, its blocks concatenated: a tuple of `[B, ...]`.
    """
    embeddings = tf.stop_gradient(comparison.embeddings)
    references = tf.stop_gradient(comparison.references)
    nearness = distance.nearness(references, tf.dtypes.as_dtype(mining_dtype or embeddings.dtype))

    def block(rows):
        return select(nearness(embeddings[rows]), *masks(comparison, rows))

    count, width = embeddings.shape[0], references.shape[0]
    if count is not None and width is not None and count * width <= BLOCK_ELEMENTS:
        return block(slice(None))

    total = tf.shape(embeddings)[0]
    step = tf.maximum(BLOCK_ELEMENTS // tf.maximum(tf.shape(references)[0], 1), 1)
    arrays = tuple(
        tf.TensorArray(dtype, 0, dynamic_size=True, infer_shape=False) for dtype in dtypes
    )

    def body(i, arrays):
        results = block(slice(i * step, tf.minimum((i + 1) * step, total)))
        return i + 1, tuple(a.write(i, r) for a, r in zip(arrays, results, strict=True))

    # One block in flight: more would multiply the memory and fight for the same cores.
    _, arrays = tf.while_loop(
        lambda i, _: (i * step < total) | tf.equal(i, 0), body, (0, arrays), parallel_iterations=1
    )
    return tuple(array.concat() for array in arrays)
