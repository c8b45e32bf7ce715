"""Networks from pictures to features, by address: pretrained, from TensorFlow Hub, or from nothing.

    backbone = backbones.load("pretrained:efficientnet_lite0")
    features = backbone.apply(images, train_phase=True, frozen_batch_norm=True)

`apply` belongs inside `build`: it is called once a tower, and again for validation, and its
variables are shared, trained, saved and filtered by name like those of any layer. In a fresh run
they start from the weights at the address; a checkpoint that is restored overrides them.
"""

import dataclasses
import weakref
from collections.abc import Callable

import tensorflow as tf

from models import efficientnet, nets, pretrained

v1 = tf.compat.v1

PRETRAINED = "pretrained:"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network that `load` found.

    Attributes:
      name: scope of its variables, as `efficientnet_lite0`.
      image_size: (height, width) it was trained on, or None where any will do.
      features: dimensions of its output, or None where only building it tells.
      fingerprint: SHA-256 of its weights, '' for a network from nothing.
      preprocessing: what it does to pixels, in words.
    """

    name: str
    image_size: tuple[int, int] | None
    features: int | None
    fingerprint: str
    preprocessing: str
    _build: Callable = dataclasses.field(repr=False)
    _checkpoint: str | None = dataclasses.field(default=None, repr=False)
    _variables: weakref.WeakKeyDictionary = dataclasses.field(
        default_factory=weakref.WeakKeyDictionary, repr=False, compare=False
    )

    def apply(self, images, train_phase=False, frozen_batch_norm=False):
        """Builds the network in the current graph, or once more over the same variables.

        Args:
          images: RGB [B, H, W, 3], 0 to 255, uint8 or float. What the network wants of them
            (`preprocessing`) is done here.
          train_phase: Python bool: whether the network is to be trained.
          frozen_batch_norm: normalise by the moving averages also in training.

        Returns:
          float32 [B, F].
        """
        found = self._variables.setdefault(v1.get_default_graph(), {})

        def get(getter, name, *args, **kwargs):
            if self._checkpoint:
                saved = name[name.rindex(f"{self.name}/") :]
                kwargs["initializer"] = _read_from(self._checkpoint, saved)
            found[name] = getter(name, *args, **kwargs)
            return found[name]

        with v1.variable_scope(self.name, custom_getter=get):
            return self._build(images, train_phase, frozen_batch_norm)

    def variables(self):
        """Its variables in the current graph, after `apply`; a list."""
        return list(self._variables.get(v1.get_default_graph(), {}).values())


def load(address, *, cache=None):
    """Finds a network; nothing is built before `apply`.

    Args:
      address: `pretrained:efficientnet_lite0` (to lite4), `resnet18` or `mobilenet` (from nothing).
      cache: the project's cache folder, the user's by default.

    Returns:
      A `Backbone`.

    Raises:
      ValueError: one line that names the address and what to do.
    """
    if address in _FROM_NOTHING:
        return _from_nothing(address)
    if address.startswith(PRETRAINED):
        return _pretrained(address.removeprefix(PRETRAINED), cache)
    raise ValueError(f"model.hub_address={address!r} is none of them.")


# ------------------------------------------------------------------------------ the project's own

_FROM_NOTHING = {"resnet18": (nets.resnet18, 512), "mobilenet": (nets.mobilenet, 1024)}


def _from_nothing(name):
    network, features = _FROM_NOTHING[name]

    def build(images, train_phase, frozen_batch_norm):
        pixels = tf.cast(images, tf.float32) / 127.5 - 1
        return network(pixels, train_phase and not frozen_batch_norm)

    return Backbone(name, None, features, "", "RGB 0 to 255, x / 127.5 - 1", build)


def _pretrained(name, cache):
    weights = pretrained.ready(name, cache)

    def build(images, train_phase, frozen_batch_norm):
        return efficientnet.features(images, name, train_phase, frozen_batch_norm)

    side = efficientnet.VARIANTS[name].image_size
    words = "RGB 0 to 255, (x - 127) / 128"
    return Backbone(
        name, (side, side), efficientnet.FEATURES, weights.sha256, words, build, weights.checkpoint
    )


def _read_from(checkpoint, name):
    """An initializer that reads a variable's value from a checkpoint when it runs.

    As a constant it would travel with every copy of the graph.
    """

    def initializer(shape, dtype, partition_info=None):
        with v1.device("/device:CPU:0"):
            value = tf.raw_ops.RestoreV2(
                prefix=checkpoint, tensor_names=[name], shape_and_slices=[""], dtypes=[dtype]
            )[0]
            return tf.ensure_shape(value, shape)

    return initializer
