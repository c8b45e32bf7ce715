"""The place in a user's own tf.data pipeline, for models whose data cannot start at a step.

A dataset that is a pure function of the step needs none of this. Otherwise the iterator's state
goes into the checkpoint, unless the pipeline keeps state where TensorFlow cannot see it.
"""

import hashlib
import json
import os
import re

import tensorflow as tf

v1 = tf.compat.v1

# Operations whose state no iterator holds: Python code, and random numbers without a stateless key.
_STATEFUL = re.compile(
    r"(Eager)?PyFunc|GeneratorDataset|Random(Uniform|StandardNormal|Shuffle|Gamma|Poisson).*"
    r"|TruncatedNormal|ParameterizedTruncatedNormal|Multinomial"
)


def track(dataset):
    """Prepares a dataset for `saver`, if its state can be saved.

    Returns:
      (dataset, hidden): `hidden` names what keeps state that no iterator holds; [] if it can be
      saved. (TensorFlow saves a hidden state without a word, and resumes with another one.)
    """
    hidden = hidden_state(dataset)
    if not hidden:
        options = tf.data.Options()
        # Saves where the elements in buffers come from instead of the elements.
        options.experimental_symbolic_checkpoint = True
        dataset = dataset.with_options(options)
    return dataset, hidden


def path(prefix):
    """Returns the prefix of the input state that belongs to a checkpoint's."""
    folder, name = os.path.split(prefix)
    return os.path.join(folder, name.replace("model-", "input-"))


def saved(prefix):
    """Whether a checkpoint has an input state beside it."""
    return os.path.exists(f"{path(prefix)}.index")


def hidden_state(dataset):
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


def saver(iterator):
    """Returns the `tf.compat.v1.train.Saver` of an iterator's state."""
    return v1.train.Saver([tf.data.experimental.make_saveable_from_iterator(iterator)])


def fingerprint(dataset, config):
    """Returns 16 hex digits that change with the data: element shapes, types and `dataset.*` keys.

    A saved iterator restores into another pipeline without an error; this tells them apart.
    """
    keys = {name: value for name, value in config.to_dict().items() if name.startswith("dataset.")}
    text = json.dumps([str(dataset.element_spec), keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
