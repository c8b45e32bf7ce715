"""Any Keras 3 model as a part of a graph: its layers, over variables of ours.

    @functools.cache
    def network():
        return keras_model.eagerly(keras.applications.ResNet50, weights=None, include_top=False)

    def build(inputs=None, train_phase=False):
        maps = keras_model.apply(network(), inputs["pixels"], train_phase)   # [B, h, w, 2048]

The variables are like those of any layer: shared by towers and validation, trained, saved, selected
by name. They are named by the model's paths, as `conv1_conv/kernel`.
"""

import concurrent.futures
import os
import tempfile
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trainer import keras_names, keras_ops, layers, low_rank
from trainer.config import UserError

v1 = tf.compat.v1


class _Weights(NamedTuple):
    """Where a model's weights went."""

    prefix: str  # of a checkpoint in a temporary folder, which lives as long as the model
    names: list  # [(Keras variable, its name, whether it is trained)]
    seeds: list  # Keras variables that hold the state of a random number generator


_taken = weakref.WeakKeyDictionary()  # model: _Weights


def eagerly(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Returns `function(*args, **kwargs)`, called where no graph is being built.

    Keras models must be made so: in a thread of its own, even from within `build`.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()


def apply(
    model: Any, inputs: tf.Tensor, train_phase: bool = False, *, frozen_batch_norm: bool = False
) -> Any:
    """Builds a Keras model in the current graph, or once more over the same variables.

    The first call moves the weights from the model into a temporary file, from which variables are
    initialized: from then on the model is a description without weights, and works only here.
    Dropout and drop path draw for each example of the global batch, as `layers.random_uniform`;
    new batch-norm averages go to UPDATE_OPS.

    Args:
      model: a `keras.Model` or layer that has been built, made outside of the graph (see
        `eagerly`).
      inputs: what it takes, [B, …].
      train_phase: its training mode, a Python bool.
      frozen_batch_norm: batch norm uses its stored averages also in training.

    Returns:
      The model's output: a tensor, or a structure of them.

    Raises:
      UserError: a model without weights yet, made within a graph, or for another backend than
        TensorFlow; a layer with a tensor made outside of the graph.
    """
    import keras  # costs a second

    weights = take(model)
    # A tuple, as TensorFlow's own private keys: such a collection is never written to files. It
    # keeps the model, and so the weights' file, as long as the graph.
    v1.add_to_collection(("keras_model",), model)
    within = list(model._flatten_layers())
    merged = low_rank.merged(within)
    left_out = {id(v) for x in merged for v in (x.lora_kernel_a, x.lora_kernel_b)}
    kept = [entry for entry in weights.names if id(entry[0]) not in left_out]
    dtypes = {name: tf.as_dtype(v.dtype) for v, name, _ in kept}
    initializers = layers.read_all(weights.prefix, dtypes)
    variables = {
        name: v1.get_variable(name, v.shape, dtypes[name], initializers[name], trainable=trained)
        for v, name, trained in kept
    }
    low_rank.note(merged, {id(v): name for v, name, _ in weights.names}, variables)
    mapping = [(v, variables[name]) for v, name, _ in kept]
    mapping += [(seed, keras_ops.key(seed)) for seed in weights.seeds]
    changed = [(x, "lora_enabled", False) for x in merged]
    if frozen_batch_norm or layers.frozen_batch_norm.active:
        norms = (x for x in within if isinstance(x, keras.layers.BatchNormalization))
        # What is not trainable uses its stored averages.
        changed += [(x, "trainable", False) for x in norms]
    with (
        keras_ops.replaced(inputs.shape[0], changed),
        keras.StatelessScope(mapping, initialize_variables=False) as scope,
    ):
        before = dict(scope.state_mapping)
        try:
            outputs = model(inputs, training=train_phase)
        except RuntimeError as error:
            if "capture an EagerTensor" not in str(error):
                raise
            raise UserError(
                f"{model.name}: a layer keeps a tensor that was made outside of the graph, as "
                "layers of preprocessing do: make the model without it"
            ) from None
    for variable, name, _ in kept:
        value = scope.get_current_value(variable)
        if train_phase and value is not before[id(variable)]:
            v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, v1.assign(variables[name], value))
    return outputs


def take(model: Any) -> _Weights:
    """Moves a model's weights into a temporary file, the first time; see `apply`."""
    if model not in _taken:
        _taken[model] = eagerly(_take, model)
    return _taken[model]


def _take(model):
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow")
    if not model.built or not model.variables:
        raise UserError(
            f"{model.name} has no weights yet: give it an Input layer, or call it on an image"
        )
    if len(getattr(model, "inputs", None) or [0]) != 1:
        raise UserError(f"{model.name} has {len(model.inputs)} inputs; it must take images alone")
    seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    kept = [v for v in model.variables if not v.path.endswith("seed_generator_state")]
    names = keras_names.names(model, kept)
    if any(tf.is_symbolic_tensor(v.handle) for v in kept):
        raise UserError(
            f"{model.name} was made within a graph: make it by trainer.keras_model.eagerly"
        )
    folder = tempfile.TemporaryDirectory(prefix="prototrain-keras-", ignore_cleanup_errors=True)
    weakref.finalize(model, folder.cleanup)
    prefix = os.path.join(folder.name, "weights")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.convert_to_tensor(v.value) for v in kept],
    )
    trained = [bool(v.trainable) for v in kept]
    for variable in (*kept, *seeds):
        variable._value, variable._initializer = None, _gone
    for layer in model._flatten_layers():
        # Layers of preprocessing keep constants as eager tensors, which no graph takes.
        for name, value in vars(layer).items():
            if isinstance(value, tf.Tensor):
                object.__setattr__(layer, name, value.numpy())
    return _Weights(prefix, list(zip(kept, names, trained, strict=True)), seeds)


def _gone(shape, dtype=None):
    raise ValueError("This model's weights are in a graph: it works only in keras_model.apply.")
