"""Networks of KerasHub: `kerashub:PRESET`, in its own format and in those that others publish.

A preset is a folder, `hf:OWNER/NAME[@revision]`, `kaggle:…`, or a name of KerasHub's. KerasHub
reads its own format and much of Hugging Face's and timm's; `weight_maps` names the rest for it.
"""

import contextlib
import functools
import os
import re

import numpy as np

from models.backbones import presets, resize, texts, weight_files, weight_maps
from models.backbones.keras_model import Network, assigned, reason
from trainer import keras_model

EXTRA = "pip install 'prototrain[kerashub]'"
OPEN_CLIP = ("open_clip_model.safetensors", "model.safetensors")  # its files of weights


def load(preset, pooling="auto", drop_path=0.0):
    """Finds the network of a `kerashub:` address; without that prefix.

    Args:
      preset: a folder, `hf:OWNER/NAME[@revision]`, `kaggle:OWNER/MODEL/keras/VARIANT[/VERSION]`, or
        a name of KerasHub's such as `dinov2_small`.
      pooling: CLIP and SigLIP give the vector that they were trained for with auto, else tokens.
      drop_path: above 0, networks with drop path are made with this rate, not with their files'.

    Returns:
      A `keras_model.Network`.

    Raises:
      ValueError: one line.
    """
    try:
        import keras_hub  # noqa: F401
    except ImportError as error:
        raise ValueError(f"it needs KerasHub ({error}): {EXTRA}") from None
    folder, source = presets.folder_of(preset)
    kind, config = presets.kind_of(folder)
    pixels, words, size, resizing = presets.pixels_of(folder, kind, config)
    told = os.path.join(folder, "open_clip_config.json" if kind == "open_clip" else "config.json")
    tokens = functools.partial(presets.tokens_of, kind)
    prefix, class_token = presets.understood(tokens, config, told)
    tower = presets.understood(functools.partial(texts.find, folder, kind), config, told)
    antialias = kind in ("open_clip", "timm")

    @functools.cache
    def make(size):
        options = size, pooling, antialias, drop_path
        return keras_model.eagerly(assigned, _make, folder, kind, config, *options)

    name = os.path.basename(source.split("@")[0].rstrip("/"))
    scope = re.sub(r"\W+", "_", name, flags=re.ASCII)
    return Network(
        scope if re.match("[A-Za-z]", scope) else f"kerashub_{scope}",
        make,
        pixels,
        words,
        presets.fingerprint(folder),
        size,
        prefix,
        class_token,
        source,
        tower,
        resizing,
    )


# ---------------------------------------------------------------------------- networks


def _make(folder, kind, config, size, pooling, antialias, drop_path):
    """The Keras model for images of a size: the source's weights, positions resized."""
    import keras

    try:
        source, head = _source(folder, kind, config)
    except Exception as error:  # KerasHub raises many kinds for files of other networks
        raise ValueError(_words(error)) from None
    if len(source.inputs[0].shape) != 4:
        raise ValueError(f"{type(source).__name__} takes no images")
    # KerasHub's converter of ViT leaves this out, which moves features by 5e-6.
    changes = {"layer_norm_epsilon": config.get("layer_norm_eps")}
    changes |= dict.fromkeys(("drop_path_rate", "drop_path"), drop_path)
    made = _resized(source, size, antialias, changes)
    _mend(made)
    output = made.output
    if pooling == "auto":  # CLIP's goes on into the space that images share with texts
        for layer in head:
            output = layer(output)
    elif type(made).__name__ == "SigLIPVisionEncoder":
        output = made.post_layer_norm.output
    return keras.Model(made.inputs[0], output)  # of a tensor: KerasHub's takes a dictionary


def _words(error):
    """What an error says; of a value that does not fit, without the values."""
    pattern = r"variable\.shape=(.+?), Received: value\.shape=(.+?)\. Target .*?path=([^,]+)"
    if found := re.search(pattern, str(error)):
        ours, theirs, path = found.groups()
        return f"{path} is {theirs} in the file, {ours} by its configuration"
    pattern = r"(?s)A total of (\d+) objects could not be loaded.*? name=([^,>]+)"
    if found := re.search(pattern, str(error)):
        return f"{found[1]} layers of config.json have no weights in the file, as {found[2]}"
    if found := re.search(r"Exception encountered: (.+)", str(error)):
        return f"config.json: {found[1]}"
    odd = isinstance(error, KeyError | TypeError | AttributeError)  # of values taken as they are
    return f"its configuration: {reason(error)}" if odd else reason(error)


def _source(folder, kind, config):
    """(KerasHub's network of images at its own size, with its weights; CLIP's last layers)."""
    own = config.get("model_type", "")
    if kind == "open_clip":
        vision = config["vision_cfg"]
        quick = config.get("quick_gelu", False)
        timm_tower = "timm_model_name" in vision
        width, head = vision.get("width", 768), vision.get("head_width", 64)
        tensors = weight_maps.unwrap(presets.tensors(folder, OPEN_CLIP))
        sizes = {
            "hidden_act": "quick_gelu" if quick else "gelu",
            "num_attention_heads": None if timm_tower else width // head,
        }
        return weight_maps.vision_tower(weight_maps.of_open_clip(tensors), sizes, folder)
    if kind == "hf" and own.startswith(("clip", "siglip")):
        vision = config.get("vision_config", config)
        default = "quick_gelu" if own.startswith("clip") else "gelu_pytorch_tanh"
        sizes = {
            "hidden_act": vision.get("hidden_act", default),
            "num_attention_heads": vision.get("num_attention_heads", 12),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
        }
        return weight_maps.vision_tower(weight_maps.unwrap(presets.tensors(folder)), sizes, folder)
    if kind == "timm" and "dinov2" in config["architecture"]:
        tensors = weight_maps.of_timm_dinov2(weight_maps.unwrap(presets.tensors(folder)))
        network = _dinov2(tensors, config, folder)
    else:
        network = whole(folder, kind)
    if not hasattr(network, "vision_encoder"):
        return network, []
    names = ("vision_pooler", "vision_post_layer_norm", "vision_projection")
    return network.vision_encoder, [getattr(network, n) for n in names if hasattr(network, n)]


def whole(folder, kind):
    """KerasHub's network in a folder that KerasHub itself reads; of CLIP, with its text tower."""
    from keras_hub import models

    if kind == "keras":
        with _checked(folder):
            return models.Backbone.from_preset(folder)
    with _read_by_us(folder, weight_maps.unwrap(presets.tensors(folder))):
        return models.Backbone.from_preset(folder)


def _dinov2(tensors, config, source):
    """timm's DINOv2 by KerasHub's converter of Hugging Face's."""
    from keras_hub.src.utils.transformers import convert_dinov2

    def of(name):
        if name not in tensors:
            raise ValueError(
                f"{source}: the tensor {name} is missing: the file is damaged or of another network"
            )
        return tensors[name].shape

    patch = of("embeddings.patch_embeddings.projection.weight")[-1]
    width, count = of("embeddings.cls_token")[-1], of("embeddings.position_embeddings")[1]
    args = config.get("model_args", {})
    swiglu = "encoder.layer.0.mlp.fc2.weight" not in tensors or "giant" in config["architecture"]
    if swiglu:
        raise ValueError(f"{source}: DINOv2-g of timm is not converted; use Hugging Face's")
    described = {
        "model_type": "dinov2",
        "image_size": patch * int((count - 1) ** 0.5),
        "patch_size": patch,
        "num_hidden_layers": sum(n.endswith("norm1.weight") for n in tensors),
        "hidden_size": width,
        "num_attention_heads": args.get("num_heads", width // 64),
        "mlp_ratio": of("encoder.layer.0.mlp.fc1.weight")[0] / width,
        "layerscale_value": 1.0,
        "num_register_tokens": tensors.get("embeddings.register_tokens", np.zeros((1, 0))).shape[1],
        "use_mask_token": False,
        "use_swiglu_ffn": False,
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    network = convert_dinov2.backbone_cls(**convert_dinov2.convert_backbone_config(described))
    with _read_by_us(source, tensors) as loader:
        convert_dinov2.convert_weights(network, loader, described)
    return network


@contextlib.contextmanager
def _checked(folder):
    """Names the file of weights if it is none, missing or damaged."""
    import h5py

    names = [name for name in sorted(os.listdir(folder)) if name.endswith(".weights.h5")]
    for path in (os.path.join(folder, name) for name in names or ["model.weights.h5"]):
        weight_files.check(path, b"\x89HDF")
        try:
            h5py.File(path).close()
        except OSError as error:
            raise ValueError(f"{path}: it is damaged: {reason(error)}") from None
    yield


@contextlib.contextmanager
def _read_by_us(folder, tensors):
    """Lets KerasHub's converters read these tensors: bfloat16, too, and a missing one is named."""
    from keras_hub.src.utils.transformers import safetensor_utils

    class Loader(safetensor_utils.SafetensorLoader):
        def __init__(self, preset=None, prefix=None, fname=None):
            contextlib.ExitStack.__init__(self)
            self.prefix, self.safetensor_config = prefix, None

        def get_tensor(self, hf_weight_key):
            key = self.get_prefixed_key(hf_weight_key, tensors)
            if key not in tensors:  # a file without the classifier has no `vit.` before its names
                key = key.partition(".")[2]
            if key not in tensors:
                raise ValueError(
                    f"{folder}: the tensor {hf_weight_key} is missing: the file is damaged, or of "
                    "another network than config.json"
                )
            return np.asarray(tensors[key])

    from keras_hub.src.utils.timm import preset_loader as timm_loader
    from keras_hub.src.utils.transformers import preset_loader as hf_loader

    before = hf_loader.SafetensorLoader, timm_loader.SafetensorLoader
    try:
        hf_loader.SafetensorLoader = timm_loader.SafetensorLoader = Loader
        yield Loader()
    finally:
        hf_loader.SafetensorLoader, timm_loader.SafetensorLoader = before


def _resized(source, size, antialias, changes):
    """The same network for images of a size, with other values of what its configuration has.

    It is made anew even for its own size, without the network's name: KerasHub puts it into some
    layers' names, and the variables must have the same ones at every size.
    """
    config = source.get_config()
    shape = config.get("image_shape")
    config.pop("name", None)
    config |= {name: value for name, value in changes.items() if value and name in config}
    patch = config.get("patch_size", 1)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    if any(n % patch for n in size):
        near = " or ".join(str(max(size[0] // patch + more, 1) * patch) for more in (0, 1))
        raise ValueError(
            f"images of {size[0]} x {size[1]} are no multiple of its patches, {patch}; give {near}"
        )
    if shape is None or None in tuple(shape):
        return source
    config["image_shape"] = (*size, 3)
    try:
        made = type(source).from_config(config)
    except ValueError as error:
        raise ValueError(f"images of {size[0]} x {size[1]}: {reason(error)}") from None
    antialias |= bool(getattr(source, "antialias_in_interpolation", False))
    tables = [v for v in source.weights if v.path.endswith("/position_embeddings")]
    for variable, old in zip(made.weights, source.weights, strict=True):
        if variable.path.endswith("interpolated_position_embeddings"):
            old = tables[0]
        value = old.value
        if variable.path.endswith("position_ids"):
            value = np.arange(variable.shape[1])[None]
        if variable.shape != value.shape:
            grid = tuple(n // patch for n in size)
            value = resize.positions(np.asarray(value), grid, antialias=antialias)
        variable.assign(value)
    return made


def _mend(model):
    """KerasHub's drop path of DINOv2 and DINOv3 scales paths by noise; this one drops them."""
    from keras import ops, random

    def call(layer, inputs, training=None):
        if not training or layer.rate == 0:
            return inputs
        shape = (ops.shape(inputs)[0], *(1,) * (len(inputs.shape) - 1))
        keep = 1 - layer.rate
        return inputs / keep * ops.floor(keep + random.uniform(shape, dtype=inputs.dtype))

    for layer in model._flatten_layers():
        if type(layer).__name__ in ("DINOV2DropPath", "DINOV3DropPath"):
            layer.call = functools.partial(call, layer)
