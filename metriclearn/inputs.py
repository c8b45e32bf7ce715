"""Checks arguments: labels and embeddings are converted to tensors of one form, or refused.

Labels are names of classes; only their equality matters. They may be integers of any width,
strings, bools (two classes) and floats that are whole numbers up to 2^24 (Keras passes labels as
float32), as a vector `[N]` or a column `[N, 1]`. Others are refused, because labels that are
silently rounded or broadcast merge classes.
"""

from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from metriclearn.xla import compiling, refuse_xla

TensorLike: TypeAlias = Any
"""A tensor, a NumPy array, a variable or nested lists of numbers."""

# Value of an invalid float label under XLA, which cannot raise: its embedding becomes NaN.
_NO_LABEL = tf.int64.min

# float32 represents all whole numbers up to this; narrower floats represent fewer.
LARGEST_FLOAT_LABEL = 2**24


def label_tensor(labels: TensorLike, what: str = "labels") -> tf.Tensor:
    """Returns labels as an `[N]` tensor of integers or strings.

    Float values are checked at once if they are known (eagerly, or constants), otherwise by an
    assertion in the graph. XLA drops assertions: when compiled, `check_batch` makes the embeddings
    of invalid labels NaN, and so the loss.

    Args:
        labels: `[N]` or `[N, 1]` integers, strings, bools or whole floats.
        what: the argument's name, for error messages.

    Raises:
        ValueError: another shape or dtype, or a float that is not a whole number up to 2^24.
    """
    labels = column_tensor(labels, what)
    if labels.dtype == tf.bool:
        return tf.cast(labels, tf.int32)
    if labels.dtype.is_floating:
        return _whole(labels, what)
    if not labels.dtype.is_integer and labels.dtype != tf.string:
        raise ValueError(
            f"{what} must be integers, strings, bools or whole floats, got {labels.dtype.name}"
        )
    return labels


def _whole(labels: tf.Tensor, what: str) -> tf.Tensor:
    limit = {tf.float16: 2**11, tf.bfloat16: 2**8}.get(labels.dtype, LARGEST_FLOAT_LABEL)
    message = f"{what} given as floats must be whole numbers up to {limit}: pass integers instead"
    known = tf.get_static_value(labels)
    if known is not None:
        known = np.asarray(known, np.float64)
        if not np.all((known == np.round(known)) & (np.abs(known) <= limit)):
            raise ValueError(f"{message}; got {labels.dtype.name}")
        return tf.cast(labels, tf.int64)
    whole = tf.equal(labels, tf.round(labels)) & (tf.abs(labels) <= limit)
    if compiling():
        return tf.where(whole, tf.cast(labels, tf.int64), _NO_LABEL)
    whole = _require(tf.reduce_all(whole), message)
    checks = [whole, *refuse_xla(labels, "float_labels_cannot_be_checked")]
    with tf.control_dependencies(checks):
        return tf.cast(labels, tf.int64)


@tf.function(experimental_attributes={"_noinline": True}, autograph=False)
def _require(holds: tf.Tensor, message: tf.Tensor) -> tf.Tensor:
    """An assertion whose error is only its message, without TensorFlow's report of its origin.

    TensorFlow writes that report for nodes of the called function, but not for nodes of inner
    functions.
    """
    with tf.control_dependencies(
        [tf.debugging.Assert(holds, [message], name="labels_must_be_whole_numbers")]
    ):
        return tf.identity(holds)


def column_tensor(values: TensorLike, what: str) -> tf.Tensor:
    """Returns `[N]` or `[N, 1]` values as an `[N]` tensor.

    Raises:
        ValueError: the shape is known to be different. If it is unknown, an assertion in the graph
            checks it.
    """
    try:
        values = tf.convert_to_tensor(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be converted to a tensor: {error}") from None
    rank = values.shape.rank
    if rank == 1:
        return values
    if rank not in (None, 2) or (rank == 2 and values.shape[1] not in (None, 1)):
        raise ValueError(f"{what} must be a vector [N] or a column [N, 1], got {values.shape}")
    if rank is None or values.shape[1] is None:
        shape = tf.shape(values)
        fits = (tf.size(shape) > 0) & (tf.size(shape) < 3) & tf.equal(tf.reduce_prod(shape[1:]), 1)
        message = f"{what} must be a vector [N] or a column [N, 1]"
        with tf.control_dependencies([tf.debugging.Assert(fits, [message, shape])]):
            values = tf.identity(values)
    return tf.reshape(values, [-1])


def float_matrix(embeddings: TensorLike, what: str = "embeddings") -> tf.Tensor:
    """Returns a floating-point `[N, D]` tensor; half precision is widened to float32.

    Raises:
        ValueError: another dtype or shape.
    """
    embeddings = tf.convert_to_tensor(embeddings)
    if not embeddings.dtype.is_floating or embeddings.shape.rank not in (None, 2):
        raise ValueError(
            f"{what} must be a matrix [batch, dimension] of floats, got "
            f"{embeddings.dtype.name} of shape {embeddings.shape}"
        )
    return tf.cast(embeddings, tf.float32) if embeddings.dtype.size < 4 else embeddings


def check_batch(
    labels: TensorLike, embeddings: TensorLike, whose: str = ""
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns labels `[B]` and embeddings `[B, D]`, checked to have one label per row.

    Args:
        labels: see `label_tensor`.
        embeddings: see `float_matrix`.
        whose: prefix of the arguments' names in error messages ("reference ").

    Raises:
        ValueError: the dtype or shape is wrong, or known lengths differ. Unknown lengths are
            compared by an assertion in the graph.
    """
    given, labels = labels, label_tensor(labels, f"{whose}labels")
    embeddings = float_matrix(embeddings, f"{whose}embeddings")
    if compiling() and tf.convert_to_tensor(given).dtype.is_floating:
        broken = tf.cast(np.nan, embeddings.dtype)
        embeddings = tf.where(tf.equal(labels, _NO_LABEL)[:, None], broken, embeddings)
    return match_rows(labels, embeddings, f"{whose}labels", f"{whose}embeddings"), embeddings


def match_rows(values: tf.Tensor, rows: tf.Tensor, what: str, of: str) -> tf.Tensor:
    """Returns `values`, checked to have as many elements as `rows` has rows."""
    if not values.shape[:1].is_compatible_with(rows.shape[:1]):
        raise ValueError(f"{values.shape[0]} {what} for {rows.shape[0]} {of}: pass one per row")
    if values.shape[0] is not None and rows.shape.rank and rows.shape[0] is not None:
        return values
    message = f"pass one of {what} per row of {of}"
    same = tf.debugging.assert_equal(tf.shape(values)[0], tf.shape(rows)[0], message=message)
    with tf.control_dependencies([] if same is None else [same]):
        return tf.identity(values)


def label_array(labels: Any, what: str = "labels", count: int | None = None) -> np.ndarray:
    """`label_tensor` for NumPy: `[N]` values that compare exactly.

    Args:
        labels: `[N]` or `[N, 1]` integers, strings, bools or whole floats.
        what: the argument's name, for error messages.
        count: the required N; None: any.

    Raises:
        ValueError: another shape, dtype or length, or a float that is not a whole number up to
            2^24.
    """
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{what} must be a vector [N] or a column [N, 1], got {values.shape}")
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} {what} for {count} labels: pass one per row")
    if values.dtype.kind == "f":
        # NumPy also turns mixed int64 and uint64 into float64; refused if that could round.
        limit = min(LARGEST_FLOAT_LABEL, 2 ** (np.finfo(values.dtype).nmant + 1))
        if not np.all((values == np.round(values)) & (np.abs(values) <= limit)):
            raise ValueError(
                f"{what} given as floats must be whole numbers up to {limit}: pass integers "
                f"instead; got {values.dtype.name}"
            )
        return values.astype(np.int64)
    if values.dtype.kind == "O":
        kinds = {str if isinstance(v, str) else int if _is_integer(v) else None for v in values}
        if len(kinds) > 1 or None in kinds:
            raise ValueError(
                f"{what} must be all integers or all strings, got a mixture of objects"
            )
    elif values.dtype.kind not in "biuSU":
        raise ValueError(
            f"{what} must be integers, strings, bools or whole floats, got {values.dtype.name}"
        )
    return values


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
