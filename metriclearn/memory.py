"""Cross-batch memory: embeddings of past batches as additional references.

Wang, Zhang, Huang, Scott: Cross-Batch Memory for Embedding Learning (arXiv 1912.06798). After the
first steps embeddings change slowly, so those of recent batches can be used as negatives.

    memory = cross_batch_memory(8192, 128)
    references = enqueue(memory, labels, embeddings)
    loss = contrastive_loss(labels, embeddings, references=references)
"""

from typing import NamedTuple

import tensorflow as tf

from metriclearn.inputs import TensorLike, check_batch
from metriclearn.pairs import References


class Memory(NamedTuple):
    """A ring buffer in variables.

    Attributes:
        labels: `[size]` variable.
        embeddings: `[size, D]` variable.
        total: int64 scalar variable, the number of examples added so far. The next one is written
            to row `total % size`.
    """

    labels: tf.Variable
    embeddings: tf.Variable
    total: tf.Variable


def cross_batch_memory(
    size: int,
    dimension: int,
    *,
    label_dtype: tf.DType | str = tf.int64,
    dtype: tf.DType | str = tf.float32,
    name: str = "cross_batch_memory",
) -> Memory:
    """Creates an empty memory of `size` examples.

    In a tf.compat.v1 graph its variables are found by `name` within the variable scope: a second
    call in a reusing scope returns the same memory, so towers can share one, and a Saver saves it
    with the other variables. It is not trainable.

    Args:
        size: number of examples; new examples replace the oldest.
        dimension: D of the embeddings.
        label_dtype: dtype of the labels, integer or string.
        dtype: dtype of the stored embeddings.

    Raises:
        ValueError: a size or dimension below 1, or a `label_dtype` that is not integer or string.
    """
    label_dtype = tf.as_dtype(label_dtype)
    if size < 1 or dimension < 1:
        raise ValueError(f"size={size} and dimension={dimension} must be at least 1")
    if not label_dtype.is_integer and label_dtype != tf.string:
        raise ValueError(f"label_dtype must be integer or string, got {label_dtype.name}")
    blank = tf.constant("" if label_dtype == tf.string else 0, label_dtype)
    contents = {
        "labels": tf.fill([size], blank),
        "embeddings": tf.zeros([size, dimension], dtype),
        "total": tf.constant(0, tf.int64),
    }
    with tf.compat.v1.variable_scope(name):
        return Memory(
            **{
                key: tf.compat.v1.get_variable(
                    key, initializer=value, dtype=value.dtype, trainable=False, use_resource=True
                )
                for key, value in contents.items()
            }
        )


def enqueue(memory: Memory, labels: TensorLike, embeddings: TensorLike) -> References:
    """Adds a batch to the memory and returns its contents.

    Call it once per step, with the whole batch (of all towers). The memory has no gradient.

    Args:
        memory: a `Memory`.
        labels: `[B]`, see `metriclearn.inputs`, with a dtype that the memory's label dtype can
            represent exactly; B is at most the memory's size.
        embeddings: `[B, D]`.

    Returns:
        `References` to the filled part, including the batch. `self_index` is the row of each
        example there, so no loss or miner compares an example with itself.

    Raises:
        ValueError: the batch is known to be larger than the memory, labels and embeddings do not
            fit together, or do not fit the memory.
    """
    with tf.name_scope("enqueue"):
        labels, embeddings = check_batch(labels, embeddings)
        labels = _as_stored(labels, memory.labels.dtype)
        if not embeddings.shape[1:].is_compatible_with(memory.embeddings.shape[1:]):
            raise ValueError(
                f"embeddings of {embeddings.shape[1]} dimensions do not fit a memory of "
                f"{memory.embeddings.shape[1]}"
            )
        size, batch = memory.labels.shape[0], labels.shape[0]
        if batch is not None and batch > size:
            raise ValueError(f"a batch of {batch} does not fit a memory of {size} examples")
        count = tf.size(labels, out_type=tf.int64)
        fits = tf.debugging.assert_less_equal(
            count, tf.constant(size, tf.int64), message="the batch does not fit the memory"
        )
        with tf.control_dependencies([fits] if fits is not None else []):
            before = tf.identity(memory.total)
        places = (before + tf.range(count)) % size
        kept = tf.cast(tf.stop_gradient(embeddings), memory.embeddings.dtype)
        updates = [
            _scatter(memory.labels, places, labels),
            _scatter(memory.embeddings, places, kept),
        ]
        with tf.control_dependencies([before]):
            updates.append(memory.total.assign_add(count))
        filled = tf.minimum(before + count, size)
        with tf.control_dependencies([u for u in updates if u is not None]):
            return References(
                memory.labels.read_value()[:filled],
                memory.embeddings.read_value()[:filled],
                tf.cast(places, tf.int32),
            )


def _as_stored(labels: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Labels in the memory's dtype, which must represent all their values."""
    if labels.dtype == dtype:
        return labels
    if (
        tf.string in (labels.dtype, dtype)
        or labels.dtype.min < dtype.min
        or labels.dtype.max > dtype.max
    ):
        raise ValueError(
            f"{labels.dtype.name} labels do not fit a memory of {dtype.name}: make it with "
            f"label_dtype='{labels.dtype.name}'"
        )
    return tf.cast(labels, dtype)


def _scatter(variable: tf.Variable, places: tf.Tensor, values: tf.Tensor) -> tf.Operation | None:
    return tf.raw_ops.ResourceScatterUpdate(
        resource=variable.handle, indices=places, updates=values
    )
