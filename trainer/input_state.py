"""The position in a user's tf.data pipeline, for models whose data cannot start at a step.

A dataset that is a pure function of the step needs none of this. Otherwise the iterator's state
is saved with the checkpoint, unless the pipeline has state that TensorFlow cannot see.
"""

import hashlib
import json
import os
import re

import tensorflow as tf

from trainer import checkpoints
from trainer.config import Config

v1 = tf.compat.v1

# Operations with state outside of the iterator: Python code, and stateful random numbers.
_STATEFUL = re.compile(
    r"(Eager)?PyFunc|GeneratorDataset|Random(Uniform|StandardNormal|Shuffle|Gamma|Poisson).*"
    r"|TruncatedNormal|ParameterizedTruncatedNormal|Multinomial"
)


def track(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, list[str]]:
    """Prepares a dataset for `saver` if its state can be saved.

    Returns:
      (dataset, operations with hidden state); the list is empty if all state can be saved.
      (TensorFlow silently omits hidden state when it saves.)
    """
    hidden = hidden_state(dataset)
    if not hidden:
        options = tf.data.Options()
        # Saves the origin of buffered elements instead of the elements.
        options.experimental_symbolic_checkpoint = True
        dataset = dataset.with_options(options)
    return dataset, hidden


def path(prefix: str) -> str:
    """Returns the prefix of the input state that belongs to a checkpoint's prefix."""
    folder, name = os.path.split(prefix)
    return os.path.join(folder, name.replace("model-", "input-"))


def saved(prefix: str) -> bool:
    """Returns whether a checkpoint has an input state beside it."""
    return os.path.exists(f"{path(prefix)}.index")


def hidden_state(dataset: tf.data.Dataset) -> list[str]:
    """Returns the names of the operations that keep state outside the iterator, sorted.

    Args:
      dataset: a `tf.data.Dataset` built in the default graph.
    """
    graph = v1.get_default_graph()
    library = {f.signature.name: f for f in graph.as_graph_def().library.function}
    found, seen, functions = set(), set(), set()
    ops = [dataset._variant_tensor.op]
    while ops:
        op = ops.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        ops += [tensor.op for tensor in op.inputs]
        _inspect(op.node_def, library, found, functions)
    return sorted(found)


def _inspect(node, library, found, functions):
    if _STATEFUL.fullmatch(node.op):
        found.add(node.op)
    names = [value.func.name for value in node.attr.values() if value.HasField("func")]
    names += [f.name for value in node.attr.values() for f in value.list.func]
    names += [node.op] if node.op in library else []
    for name in names:
        if name in library and name not in functions:
            functions.add(name)
            for inner in library[name].node_def:
                _inspect(inner, library, found, functions)


def saver(iterator: tf.data.Iterator) -> v1.train.Saver:
    """Returns the `tf.compat.v1.train.Saver` of an iterator's state."""
    return v1.train.Saver([tf.data.experimental.make_saveable_from_iterator(iterator)])


def restore(saver: v1.train.Saver, session: v1.Session, prefix: str) -> None:
    """Restores an iterator from the state beside a checkpoint."""
    with checkpoints.literal(path(prefix)) as name:
        saver.restore(session, name)


def fingerprint(dataset: tf.data.Dataset, config: Config, workers: int = 1) -> str:
    """Returns 16 hex digits that change with the data: element shapes, types and `dataset.*` keys.

    A saved iterator restores into another pipeline without an error; this detects it.

    Args:
      dataset: batches of training data.
      config: a `Config`.
      workers: number of workers that share each batch; it does not change the data.
    """

    def whole(spec):
        if workers == 1 or not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
            return spec
        rows = spec.shape[0] and spec.shape[0] * workers
        return tf.TensorSpec([rows, *spec.shape[1:]], spec.dtype, spec.name)

    keys = {name: value for name, value in config.to_dict().items() if name.startswith("dataset.")}
    spec = tf.nest.map_structure(whole, dataset.element_spec)
    text = json.dumps([str(spec), keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
