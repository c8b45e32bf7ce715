"""Cross-batch memory: embeddings of past batches as more references to compare with.

Wang, Zhang, Huang, Scott: Cross-Batch Memory for Embedding Learning (arXiv 1912.06798). Embeddings
drift slowly once training has settled, so those of recent batches still serve as negatives.

    memory = cross_batch_memory(8192, 128)
    references = enqueue(memory, labels, embeddings)
    loss = contrastive_loss(labels, embeddings, references=references)
"""

from typing import NamedTuple

import tensorflow as tf

from metriclearn.pairs import References, check_batch


class Memory(NamedTuple):
    """A ring buffer in variables.

    Attributes:
        labels: `[size]` variable.
        embeddings: `[size, D]` variable.
        total: int64 scalar variable: how many examples ever came in; the next goes to
            `total % size`.
    """

    labels: tf.Variable
    embeddings: tf.Variable
    total: tf.Variable


def cross_batch_memory(
    size, dimension, *, label_dtype=tf.int64, dtype=tf.float32, name="cross_batch_memory"
):
    """Makes an empty memory of `size` examples.

    In a tf.compat.v1 graph its variables go by `name` within the variable scope: a second call in a
    reusing scope gives the same memory, so that towers share one, and a Saver saves it with the
    rest. It is not trainable.

    Args:
        size: examples that it holds; the oldest make way.
        dimension: D of the embeddings.
        label_dtype: dtype of the labels, integer or string.
        dtype: dtype of the embeddings kept.
    """
    label_dtype = tf.as_dtype(label_dtype)
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


def enqueue(memory, labels, embeddings):
    """Puts a batch into the memory and returns all that it then holds.

    Call it once a step, on the whole batch (of all towers). No gradient passes into the memory.

    Args:
        memory: a `Memory`.
        labels: `[B]` of the memory's label dtype; B at most the memory's size.
        embeddings: `[B, D]`.

    Returns:
        `References` to the filled part, the batch included; each example's `self_index` is its own
        entry, so that no loss or miner compares an example with itself.

    Raises:
        ValueError: the batch is known to be larger than the memory, or does not fit together.
    """
    with tf.name_scope("enqueue"):
        labels, embeddings = check_batch(labels, embeddings)
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
            _scatter(memory.labels, places, tf.cast(labels, memory.labels.dtype)),
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


def _scatter(variable, places, values):
    return tf.raw_ops.ResourceScatterUpdate(
        resource=variable.handle, indices=places, updates=values
    )
