"""Networks from images to features, by address: pretrained, from TensorFlow Hub, or from scratch.

    backbone = backbones.load("pretrained:efficientnet_lite0")
    features = backbone.apply(images, train_phase=True, frozen_batch_norm=True)

Call `apply` in `build`, once per tower and once for validation. Its variables are shared, trained,
saved and filtered by name like those of any layer. In a new run they start from the weights at the
address; a restored checkpoint overrides them.
"""

import dataclasses
import os
import re
import tarfile
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from metriclearn import augment
from metriclearn.datasets.glyphs import cache_folder
from models.backbones import (
    efficientnet,
    keras_model,
    kerashub,
    pretrained,
    saved_model,
    scratch,
    weight_files,
)
from trainer import layers
from trainer.config import did_you_mean

v1 = tf.compat.v1

PRETRAINED, KERAS, KERASHUB = "pretrained:", "keras:", "kerashub:"
_FROM_SCRATCH = {
    "resnet18": (scratch.resnet18, 512),
    "mobilenet": (scratch.mobilenet, 1024),
    "convnet": (scratch.convnet, None),  # their number depends on the image size
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network, returned by `load`.

    Attributes:
      name: scope of its variables, such as `efficientnet_lite0`.
      image_size: (height, width) of its training, None if unknown.
      features: dimensions of its output, None if known only after building it.
      fingerprint: SHA-256 of its weights, '' for a network from scratch.
      preprocessing: description of its preprocessing of pixels.
      source: its origin, with the downloaded revision.
      texts: a `texts.Tower` whose vectors can be compared with those of pooling auto, or None.
      resizing: how images must be resized before, as the files specify.
    """

    name: str
    image_size: tuple[int, int] | None
    features: int | None
    fingerprint: str
    preprocessing: str
    _build: Callable = dataclasses.field(repr=False)
    # Names, because variables would keep their graphs alive.
    _names: weakref.WeakKeyDictionary = dataclasses.field(
        default_factory=weakref.WeakKeyDictionary, repr=False, compare=False
    )
    source: str = ""
    texts: Any = None
    resizing: augment.Resizing = augment.RESIZING

    def apply(self, images, train_phase=False, frozen_batch_norm=False):
        """Builds the network in the current graph, or once more over the same variables.

        Args:
          images: RGB [B, H, W, 3], 0 to 255, uint8 or float. This method applies the network's
            `preprocessing`.
          train_phase: Python bool: normalize by the batch, and update the moving averages.
          frozen_batch_norm: normalize by the moving averages in training too.

        Returns:
          float32 [B, F].

        Raises:
          ValueError: the network does not support these images.
        """
        batch_statistics = train_phase and not (
            frozen_batch_norm or layers.frozen_batch_norm.active
        )
        before = {v.op.name for v in v1.global_variables()}
        with v1.variable_scope(self.name):
            output = self._build(images, train_phase, batch_statistics)
        names = [v.op.name for v in v1.global_variables()]
        self._names.setdefault(v1.get_default_graph(), {n for n in names if n not in before})
        return output

    def variables(self):
        """The list of its variables in the current graph, after `apply`."""
        names = self._names.get(v1.get_default_graph(), ())
        return [v for v in v1.global_variables() if v.op.name in names]


def load(address, *, input_range="", pooling="auto", lora_rank=0, drop_path=0.0, cache=None):
    """Finds a network; `apply` builds it.

    Args:
      address: one of
        `pretrained:efficientnet_lite0` (to lite4): see `models.pretrained`;
        a folder with a SavedModel of TF2, or of TF1 in TensorFlow Hub's format: it must be callable
          on images [B, H, W, 3], uint8 or float, or have a signature that takes them;
        the URL of such a SavedModel at TensorFlow Hub, or of its .tar.gz;
        `keras:FILE.keras`, `keras:package.module:function` or
          `keras:keras.applications:NAME[,weights=FILE]`: a Keras model;
        `kerashub:PRESET`: a network of KerasHub, see `kerashub.load`;
        `resnet18`, `mobilenet` or, for small images, `convnet`, from scratch.
      input_range: pixel range of a SavedModel that takes floats and does not state it: a key of
        `saved_model.RANGES`.
      pooling: how the output of a Keras model is reduced to one vector, one of `pooling.METHODS`;
        other networks use the mean ('auto').
      lora_rank, drop_path: for a Keras model, see `fine_tuning.adapt`.
      cache: the project's cache folder; default: the user's.

    Returns:
      A `Backbone`.

    Raises:
      ValueError: one line that names the address and what to do.
    """
    try:
        if address.startswith(KERAS):
            found = keras_model.load(address.removeprefix(KERAS), input_range)
            return _keras(found, pooling, lora_rank, drop_path)
        if address.startswith(KERASHUB):
            found = kerashub.load(address.removeprefix(KERASHUB), pooling, drop_path)
            return _keras(found, pooling, lora_rank, drop_path)
        if pooling not in ("auto", "mean"):
            raise ValueError(f"model.pooling={pooling} is for Keras models; give auto")
        for key, value in (("lora_rank", lora_rank), ("drop_path", drop_path)):
            if value:
                raise ValueError(f"model.{key}={value} is for Keras models; give 0")
        if address in _FROM_SCRATCH:
            return _from_scratch(address)
        if address.startswith(PRETRAINED):
            return _pretrained(address.removeprefix(PRETRAINED), cache)
        hub = bool(re.match(r"\w+://", address))  # its modules take 0 to 1
        return _saved_model(_folder(address, cache), input_range or ("0,1" if hub else ""))
    except ValueError as error:
        path = re.sub(r"^(kerashub|keras):(.*weights=)?", "", address)
        words = weight_files.named_once(error, path)
        raise ValueError(f"The backbone {address!r} cannot be used: {words}") from None


def _from_scratch(name):
    network, features = _FROM_SCRATCH[name]

    def build(images, train_phase, batch_statistics):
        return network(tf.cast(images, tf.float32) / 127.5 - 1, batch_statistics)

    return Backbone(name, None, features, "", "RGB 0 to 255, x / 127.5 - 1", build)


def _pretrained(network, cache):
    weights = pretrained.ready(network, cache)

    def initialised(getter, name, *args, **kwargs):
        saved = name[name.rindex(f"{network}/") :]
        initializer = layers.read_from(weights.checkpoint, saved)
        return getter(name, *args, **kwargs | {"initializer": initializer})

    def build(images, train_phase, batch_statistics):
        scope = v1.get_variable_scope()
        with v1.variable_scope(scope, custom_getter=initialised, auxiliary_name_scope=False):
            return efficientnet.features(images, network, batch_statistics)

    side = efficientnet.VARIANTS[network].image_size
    words = "RGB 0 to 255, (x - 127) / 128"
    return Backbone(network, (side, side), efficientnet.FEATURES, weights.sha256, words, build)


def _keras(network, pooling, lora_rank, drop_path):
    options = {"lora_rank": lora_rank, "drop_path": drop_path}

    def build(images, train_phase, batch_statistics):
        frozen = train_phase and not batch_statistics
        return keras_model.build(network, images, train_phase, frozen, pooling, **options)

    words = f"RGB 0 to 255, {network.preprocessing}; pooling {pooling}"
    found = Backbone(network.name, network.image_size, None, network.fingerprint, words, build)
    kept = {name: getattr(network, name) for name in ("source", "texts", "resizing")}
    return dataclasses.replace(found, **kept)


def _folder(address, cache):
    """The folder for an address; downloads it the first time."""
    if re.match(r"\w+://", address):
        import tensorflow_hub as hub  # takes seconds to import

        os.environ.setdefault("TFHUB_CACHE_DIR", os.path.join(cache or cache_folder(), "hub"))
        try:
            return hub.resolve(address)
        except (OSError, ValueError, tarfile.TarError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"it cannot be downloaded ({reason}); check the address and the network, or give a "
                "folder"
            ) from None
    folder = os.path.expanduser(address)
    if not os.path.isdir(folder):
        known = (*_FROM_SCRATCH, *(PRETRAINED + name for name in efficientnet.VARIANTS))
        hint = did_you_mean(address, known) or f" Give one, a URL, or {', '.join(known)}."
        raise ValueError(f"there is no such folder.{hint}")
    return folder


def _saved_model(folder, input_range):
    model = saved_model.read(folder, input_range)

    def build(images, train_phase, batch_statistics):
        return saved_model.apply(model, images, batch_statistics)

    # Begins with a letter and has no special characters: it becomes the scope of the variables.
    base = re.sub(r"\W+", "_", os.path.basename(os.path.normpath(folder)), flags=re.ASCII)
    name = base if re.match("[A-Za-z]", base) else f"hub_{base}"
    words = f"RGB 0 to 255, {model.preprocessing}"
    if model.resizing:
        words += f"; resized by {model.resizing}"
    found = Backbone(name, model.image_size, model.features, model.fingerprint, words, build)
    return dataclasses.replace(found, resizing=augment.Resizing(**model.resizing))
