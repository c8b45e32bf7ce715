"""Additions to a Keras model for fine-tuning, before it is built in a graph: drop path and LoRA."""

import os
import re
import weakref
import zlib
from typing import Any

import tensorflow as tf

from trainer import layers

_adapted: weakref.WeakSet = weakref.WeakSet()  # models that have been adapted
# Drop-path layers of Keras and KerasHub, and the attribute with their rate.
_DROP_PATH = {
    "DINOV2DropPath": "rate",
    "DINOV3DropPath": "rate",
    "DropPath": "drop_prob",
    "StochasticDepth": "drop_path_rate",
}


def adapt(model: Any, *, lora_rank: int = 0, drop_path: float = 0.0) -> None:
    """Changes a Keras model for fine-tuning. Call it once, outside of a graph.

    Args:
      model: a Keras model with its weights.
      lora_rank: above 0: train only low-rank updates of its dense layers (LoRA, arXiv 2106.09685).
      drop_path: above 0: the fraction of examples that skip the last block in training (stochastic
        depth, arXiv 1603.09382); earlier blocks are skipped less often, the first never. If the
        network has drop-path layers, they are used; in other transformers, whole blocks are
        skipped.

    Raises:
      ValueError: it has no dense layers, or neither drop path nor transformer blocks.
    """
    if model in _adapted:
        return
    if lora_rank:
        _add_low_rank(model, lora_rank)
    if drop_path:
        _add_drop_path(model, drop_path)
    _adapted.add(model)


def _add_low_rank(model, rank):
    import keras

    dense = (keras.layers.Dense, keras.layers.EinsumDense)
    found = [layer for layer in model._flatten_layers() if isinstance(layer, dense)]
    if not found:
        raise ValueError("model.lora_rank: it has no dense layers")
    for variable in model.trainable_variables:
        variable.trainable = False
    for layer in found:
        path = layer._kernel.path
        seed = zlib.crc32(path.encode()) % 2**31  # the same initial values in every run
        layer.enable_lora(rank, a_initializer=keras.initializers.HeUniform(seed))
        for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
            # Keras names them without the enclosing layers.
            variable._path = f"{os.path.dirname(path)}/{variable.name}"


def _add_drop_path(model, rate):
    own = [(x, name) for x in model._flatten_layers() if (name := _rate_of(x))]
    highest = max((getattr(layer, name) for layer, name in own), default=0)
    if highest:
        for layer, name in own:
            setattr(layer, name, getattr(layer, name) * rate / highest)
        return
    blocks = [layer for layer in model._flatten_layers() if _is_block(layer)]
    if not blocks:
        raise ValueError("model.drop_path: it has neither drop path nor numbered attention blocks")
    blocks.sort(key=lambda block: [int(n) for n in re.findall(r"\d+", block.path)])
    for i, block in enumerate(blocks):
        block.call = _skipped(block, rate * i / max(len(blocks) - 1, 1))


def _rate_of(layer):
    """The attribute with a layer's drop-path rate, or None for other layers."""
    if type(layer).__name__ == "Dropout":  # like EfficientNet's: one number per example
        return "rate" if set((layer.noise_shape or (0, 0))[1:]) == {1} else None
    return _DROP_PATH.get(type(layer).__name__)


def _is_block(layer):
    """Whether a layer is a transformer block: numbered, and containing attention."""
    import keras

    within = layer._flatten_layers(include_self=False)
    return (
        re.search(r"_\d+$", layer.name) is not None
        and not isinstance(layer, keras.Model)
        and any("Attention" in type(x).__name__ for x in within)
        and not any(map(_is_block, within))
    )


def _skipped(block, rate):
    """A block's call: in training, examples skip it at a rate; the others are scaled up."""
    call = block.call

    def called(x, *args, **kwargs):
        y = call(x, *args, **kwargs)
        if not (rate and getattr(block._get_call_context(), "training", False)):
            return y
        keep = layers.random_uniform([1] * (len(x.shape) - 1), tf.shape(x)[0]) >= rate
        return x + tf.where(keep, (y - x) / (1 - rate), tf.zeros([], y.dtype))

    return called
