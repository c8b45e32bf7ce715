"""Detects graphs that XLA compiles, and refuses what XLA cannot compile."""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # the only place that knows


def compiling() -> bool:
    """Whether the graph being built is that of a `tf.function(jit_compile=True)`."""
    if tf.executing_eagerly():
        return False
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def chosen(mask: tf.Tensor, *values: tf.Tensor) -> list[tf.Tensor]:
    """`[T]` of each value, where a mask is true, row by row.

    In XLA, shapes cannot depend on data: when compiled, T is the size of the mask, with padding (-1
    or False) where it is false.

    Args:
        mask: bool.
        values: integers or bools of a shape that broadcasts to that of the mask.
    """
    values = tuple(tf.broadcast_to(value, tf.shape(mask)) for value in values)
    if not compiling():
        places = tf.where(mask)
        return [tf.gather_nd(value, places) for value in values]
    return [
        tf.reshape(value & mask if value.dtype == tf.bool else tf.where(mask, value, -1), [-1])
        for value in values
    ]


def real(rows: tf.Tensor) -> tf.Tensor | None:
    """Which of the rows from `chosen` are not padding; None if there is no padding."""
    return tf.convert_to_tensor(rows) >= 0 if compiling() else None


def refuse_xla(tensor: tf.Tensor, why: str) -> list[tf.Operation]:
    """Control dependencies that XLA cannot compile; its error shows `why`, a node's name.

    For code that XLA would compile incorrectly: it drops assertions, and pads tensors whose size
    depends on data. A graph may be compiled although that was unknown when it was built; this node
    then raises. Otherwise, formatting an element as a string costs nothing.

    Raises:
        ValueError: the graph being built will be compiled.
    """
    if compiling():
        raise ValueError(
            f"{tf.get_current_name_scope()}: XLA cannot compile this ({why.replace('_', ' ')}): "
            "use model.compile(..., jit_compile=False)"
        )
    if tf.executing_eagerly():
        return []
    with tf.device("CPU:0"):
        return [tf.strings.as_string(tf.reshape(tensor, [-1])[:1], name=why).op]
