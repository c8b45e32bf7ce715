"""Text towers of CLIP, SigLIP and MetaCLIP 2, in the formats of `kerashub`.

The tower is exported as a separate SavedModel, from token ids to vectors, with the vocabulary and
the rules for token ids (`retrieval.embeddings.tokens`): a search needs neither KerasHub nor
TensorFlow's Python package.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from models.backbones import presets, weight_maps
from models.backbones.keras_model import assigned, reason
from retrieval.embeddings import tokens
from trainer import files, keras_model
from trainer.config import UserError

CLEANINGS = {
    "whitespace": "",
    "lower": "lower",
    "canonicalize": "canonicalize",
}  # in OpenCLIP


class Tower(NamedTuple):
    """A text tower.

    Attributes:
      folder: the folder with its vocabulary.
      family: 'clip', 'metaclip' or 'siglip'.
      cleaning: one of `tokens.CLEANING`; None: the family's.
      length: tokens per sequence; None: that of the weights.
      make: function -> Keras model, token ids int32 [N, L] -> [N, D].
    """

    folder: str
    family: str
    cleaning: str | None
    length: int | None
    make: Callable

    def check(self) -> None:
        """Raises a UserError if the folder has no vocabulary."""
        try:
            tokens.find(self.folder)
        except ValueError as error:
            raise UserError(str(error)) from None

    def save(self, folder: str) -> None:
        """Writes the files for `texts.TextEmbedder` to a folder that does not exist yet.

        Raises:
          ValueError: there is no vocabulary, it is of another network, or weights are damaged.
        """
        import tensorflow as tf

        from trainer import export

        v1 = tf.compat.v1
        name, content = tokens.find(self.folder)
        model = keras_model.eagerly(self.make)
        length = self.length or _length(model)
        with tempfile.TemporaryDirectory() as at, tf.Graph().as_default(), v1.Session() as session:
            path = os.path.join(at, name)
            with open(path, "wb") as out:
                out.write(content)
            try:
                vocabulary = tokens.Vocabulary(path)
                rules = tokens.rules(vocabulary, self.family, length, self.cleaning)
            except ValueError as error:
                words = str(error).removeprefix(f"{path}: ")
                raise ValueError(f"{self.folder}: {words}") from None
            v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, tf.constant(path))
            ids = v1.placeholder(tf.int32, [None, length], "tokens")
            with v1.variable_scope("texts"):
                vectors = tf.nn.l2_normalize(keras_model.apply(model, ids), axis=1)
            session.run(v1.global_variables_initializer())
            note = {
                "features": int(vectors.shape[1]),
                "tensors": {"tokens": ids.name, "embeddings": vectors.name},
                "vocabulary": name,
                "rules": rules._asdict(),
            }
            export.write(session, folder, {"tokens": ids}, {"embeddings": vectors}, note)


def find(folder: str, kind: str, config: dict) -> Tower | None:
    """The text tower in a folder of weights, None if it has none.

    Args:
      folder, kind, config: the folder, and the result of `presets.kind_of`.
    """
    make = functools.partial(assigned, _make, folder, kind, config)
    own = config.get("model_type", "")
    if kind == "open_clip":
        text = config.get("text_cfg", {})
        if not text or "hf_model_name" in text:
            return None
        given = text.get("tokenizer_kwargs", {}).get("clean")
        siglip = text.get("pool_type") == "last"
        return Tower(
            *(folder, "siglip" if siglip else "clip", CLEANINGS.get(given)),
            *(text.get("context_length", 77), make),
        )
    if kind == "hf" and "text_config" in config:
        for start, family in (("clip", "clip"), ("siglip", "siglip"), ("metaclip", "metaclip")):
            if own.startswith(start):
                length = config["text_config"].get("max_position_embeddings")
                return Tower(folder, family, None, length, make)
    if kind == "keras":
        name = config["registered_name"].lower().replace("_", "")
        for family in ("metaclip", "siglip", "clip"):
            if f">{family}" in name:
                return Tower(folder, family, _cleaning(folder), None, make)
    return None


def _cleaning(folder):
    """The configuration of KerasHub's preprocessor, or None."""
    path = os.path.join(folder, "preprocessor.json")
    found = files.read_json(path)["config"] if os.path.exists(path) else {}
    if "canonicalize_text" in found:
        return "canonicalize" if found["canonicalize_text"] else ""
    return None


def _length(model):
    """Number of positions in a tower's training."""
    for layer in model._flatten_layers():
        if hasattr(layer, "sequence_length") and hasattr(layer, "token_embedding"):
            return int(layer.sequence_length)
    raise ValueError(f"{model.name}: the number of tokens of its texts is unknown")


def _make(folder, kind, config):
    """The tower as a Keras model."""
    from models.backbones import kerashub

    own = config.get("model_type", "")
    if kind == "open_clip":
        text = config["text_cfg"]
        gelu = "gelu"
        if text.get("act_kwargs", {}).get("approximate") == "tanh":
            gelu = "gelu_pytorch_tanh"
        sizes = {
            "num_attention_heads": text.get("heads", 8),
            "hidden_act": "quick_gelu" if config.get("quick_gelu") else gelu,
            "layer_norm_eps": text.get("norm_kwargs", {}).get("eps", 1e-5),
        }
        found = weight_maps.unwrap(presets.tensors(folder, kerashub.OPEN_CLIP))
        return weight_maps.text_tower(weight_maps.text_of_open_clip(found), sizes, folder)
    if kind == "hf" and own.startswith(("clip", "siglip")):
        text, clip = config["text_config"], own.startswith("clip")
        sizes = {
            "num_attention_heads": text.get("num_attention_heads", 8 if clip else 12),
            "hidden_act": text.get("hidden_act", "quick_gelu" if clip else "gelu_pytorch_tanh"),
            "layer_norm_eps": text.get("layer_norm_eps", 1e-5 if clip else 1e-6),
        }
        found = weight_maps.unwrap(presets.tensors(folder))
        return weight_maps.text_tower(found, sizes, folder)
    try:
        return _of_kerashub(kerashub.whole(folder, kind))
    except Exception as error:  # KerasHub raises many kinds for files of other networks
        raise ValueError(reason(error)) from None


def _of_kerashub(network):
    """The text half of KerasHub's network of images and texts."""
    import keras

    ids = keras.Input((None,), dtype="int32", name="token_ids")
    return keras.Model(ids, network.get_text_embeddings(ids))
