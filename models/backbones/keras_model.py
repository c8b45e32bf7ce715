"""Keras models as backbones: files, functions, and the networks that come with Keras.

`keras:FILE.keras`, `keras:package.module:function`, `keras:keras.applications:NAME[,weights=FILE]`.
"""

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from metriclearn import augment
from models.backbones import fine_tuning, saved_model, weight_files
from models.backbones.pooling import pool
from trainer import files, keras_model
from trainer.config import did_you_mean

APPLICATIONS = "keras.applications:"


class Network(NamedTuple):
    """A Keras model from images to features.

    Attributes:
      name: scope of its variables.
      make: function (height, width) -> Keras model for images of that size.
      pixels: function, float RGB 0 to 255 -> what the model takes.
      preprocessing: what that does, in words.
      fingerprint: SHA-256 of its weights, '' if they are random.
      image_size: (height, width) it was trained on, if known.
      prefix: tokens of its output before those of patches.
      class_token: whether the first of these is a class token.
      source: where it comes from, with the revision that was fetched.
      texts: a `texts.Tower` for texts that its vectors are compared with, None without one.
      resizing: how images get their size, as the files say.
    """

    name: str
    make: Callable
    pixels: Callable
    preprocessing: str
    fingerprint: str
    image_size: tuple[int, int] | None = None
    prefix: int = 0
    class_token: bool = False
    source: str = ""
    texts: Any = None
    resizing: augment.Resizing = augment.RESIZING


def build(
    network: Network, images: Any, train_phase: bool, frozen: bool, pooling: str, **options: Any
) -> tf.Tensor:
    """Builds a network in the current graph and scope. See `Backbone.apply` and `load`.

    Args:
      network: the network.
      images: RGB [B, H, W, 3], 0 to 255.
      train_phase: Python bool.
      frozen: batch norm uses its stored averages also in training.
      pooling: one of `pooling.METHODS`.
      options: of `fine_tuning.adapt`.

    Returns:
      float32 [B, F].

    Raises:
      ValueError: images that it does not take; one line.
    """
    size = tuple(images.shape[1:3])
    try:
        model = network.make(size)
        keras_model.eagerly(fine_tuning.adapt, model, **options)
        pixels = network.pixels(tf.cast(images, tf.float32))
        output = keras_model.apply(model, pixels, train_phase, frozen_batch_norm=frozen)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        words = weight_files.named_once(reason(error), network.source)
        raise ValueError(f"{network.source}: {words}") from error
    if isinstance(output, dict | list | tuple):
        raise ValueError(f"{network.source}: it has {len(output)} outputs; it must give features")
    return pool(output, pooling, prefix=network.prefix, class_token=network.class_token)


reason = saved_model.first_line


def assigned(function: Callable, *args: Any) -> Any:
    """Returns the Keras model of `function(*args)`, which assigns its weights; eagerly.

    Layers draw no random weights, which takes most of the time, for this model and for each that it
    is made from. Keras notes variables without values by thread: call it by
    `trainer.keras_model.eagerly`.
    """
    import keras

    with keras.StatelessScope(initialize_variables=False) as scope:
        model = function(*args)
    for variable in model.variables:
        value = scope.get_current_value(variable)
        if value is None:  # the state of a random number generator
            variable._deferred_initialize()
        else:
            variable._initialize(value)
    return model


def load(address: str, input_range: str = "") -> Network:
    """Finds the network of a `keras:` address; without that prefix.

    Args:
      address: FILE.keras, package.module:function, or keras.applications:NAME[,weights=FILE].
      input_range: pixels it wants, a key of `saved_model.RANGES`; '' if the model says it: it has
        layers of preprocessing, or takes integers.

    Raises:
      ValueError: one line.
    """
    if address.startswith(APPLICATIONS):
        return _application(address.removeprefix(APPLICATIONS))
    is_file = address.endswith((".keras", ".h5", ".hdf5")) or os.path.exists(address)
    path = os.path.expanduser(address)
    if is_file:
        model, fingerprint = _read(path), files.sha256(path)
    elif re.fullmatch(r"[\w.]+:\w+", address):
        model = _call(address)
        fingerprint = keras_model.eagerly(_fingerprint, model)
    else:
        raise ValueError(
            "there is no such file; give FILE.keras, package.module:function, or "
            "keras.applications:NAME"
        )
    taken = _input(model)
    words = _range(model, taken, input_range)
    size = tuple(taken.shape[1:3])
    return Network(
        _scope(os.path.basename(path) if is_file else address.split(":")[1]),
        _for_any_size(model),
        lambda pixels: _cast(saved_model.scaled(pixels, words), taken.dtype),
        f"scaled to {words}",
        fingerprint,
        size if None not in size else None,
        source=address,
    )


def _scope(name):
    base = re.sub(r"\W+", "_", os.path.splitext(name)[0], flags=re.ASCII)
    return base if re.match("[A-Za-z]", base) else f"keras_{base}"


def _for_any_size(model):
    def make(size):
        fixed = tuple(model.inputs[0].shape[1:3])
        if any(n not in (None, m) for n, m in zip(fixed, size, strict=True)):
            wanted = " x ".join(map(str, fixed))
            raise ValueError(f"takes images of {wanted}, not {size[0]} x {size[1]}")
        return model

    return make


def _read(path):
    import keras

    if path.endswith((".h5", ".hdf5")):
        raise ValueError("this is Keras's old format: load it with Keras and save it as .keras")
    weight_files.check(path, b"PK")
    try:
        return keras_model.eagerly(keras.saving.load_model, path, compile=False)
    except Exception as error:  # whatever the layers in it raise
        raise ValueError(f"Keras cannot load it: {reason(error)}") from None


def _call(address):
    import keras

    module, name = address.split(":")
    try:
        function = getattr(importlib.import_module(module), name)
        model = keras_model.eagerly(function)
    except Exception as error:  # whatever the user's code raises
        kind = type(error).__name__
        raise ValueError(f"it fails: {kind}: {reason(error)}") from None
    if not isinstance(model, keras.Model):
        raise ValueError(f"it returns a {type(model).__name__}, not a keras.Model")
    return model


def _input(model):
    """The one input of a model, a KerasTensor of RGB images."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ValueError(f"{model.name} is not built: give it a keras.Input of images")
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[-1] != 3:
        shapes = ", ".join(str(x.shape) for x in inputs)
        raise ValueError(f"{model.name} takes {shapes}; it must take images [B, H, W, 3] alone")
    return inputs[0]


def _range(model, taken, asked):
    """The pixels that a model wants, a key of `saved_model.RANGES`."""
    asked = asked.replace(" ", "")
    if asked and asked not in saved_model.RANGES:
        raise ValueError(f"input range {asked!r} is none of {' '.join(saved_model.RANGES)}")
    inside = {type(layer).__name__ for layer in model._flatten_layers()}
    if asked or "int" in str(taken.dtype) or inside & {"Rescaling", "Normalization"}:
        return asked or "0,255"
    raise ValueError(
        f"{model.name} takes floats, and nothing says which range of pixels it was trained on. "
        f"Choose one with --model.hub_input_range: {'  '.join(saved_model.RANGES)}"
    )


def _cast(pixels, dtype):
    return tf.cast(tf.round(pixels) if "int" in str(dtype) else pixels, dtype)


def _fingerprint(model):
    try:
        layers = model.to_json()
    except Exception:  # a model of the user's own class, which may raise anything
        layers = type(model).__name__
    digest = hashlib.sha256(layers.encode())
    for variable in model.weights:
        digest.update(f"{variable.path}\n".encode())
        digest.update(variable.numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------------------- keras.applications


def _application(text):
    """A network of Keras; its own module says what to do to pixels."""
    import keras

    name, *options = text.split(",")
    known = [n for n in dir(keras.applications) if n[0].isupper()]
    if name not in known:
        hint = did_you_mean(name, known) or f" It has {', '.join(known)}."
        raise ValueError(f"keras.applications has no {name!r}.{hint}")
    given = dict(option.partition("=")[::2] for option in options)
    if set(given) - {"weights"}:
        raise ValueError(f"{options[0]!r}: the only option is weights=FILE or weights=imagenet")
    weights = os.path.expanduser(given.get("weights", ""))
    fetched = weights == "imagenet"
    if weights and not fetched:
        weight_files.check(weights, b"PK" if weights.endswith(".keras") else b"\x89HDF")
    function = getattr(keras.applications, name)

    def make():
        options = {"include_top": False, "input_shape": (None, None, 3)}
        model = function(weights="imagenet" if fetched else None, **options)
        if weights and not fetched:
            model.load_weights(weights)
        return model

    try:
        model = keras_model.eagerly(make)
    except Exception as error:  # Keras raises many kinds for a file of other weights
        raise ValueError(
            f"{name} cannot be made{f' from {weights}' if weights else ''} (weights must be those "
            f"without its classifier): {reason(error)}"
        ) from None
    module = sys.modules[function.__module__]
    fingerprint = ""
    if weights:
        fingerprint = keras_model.eagerly(_fingerprint, model)
    return Network(
        _scope(model.name),
        _for_any_size(model),
        module.preprocess_input,
        f"preprocess_input of {module.__name__.replace('.src.', '.')}",
        fingerprint,
        source=f"keras.applications:{text}",
    )
