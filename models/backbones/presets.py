"""Folders of published weights: their place, format and preprocessing."""

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metriclearn import augment
from models.backbones import weight_files
from models.backbones.keras_model import reason
from trainer import files

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
# Supported networks of Hugging Face, as prefixes of model_type.
_HUGGING_FACE = ("clip", "deit", "dinov2", "dinov3", "metaclip_2", "siglip", "swin", "vit")
# All files that are read from a folder; the last three are for texts.
_READ = ["*.json", "*.safetensors", "*.weights.h5", "*.model", "*.spm", "*merges.txt"]
_TOKENIZER = os.path.join("assets", "tokenizer")  # in a folder of KerasHub
# Files of a model that define its preprocessing.
_PREPROCESSING = ("image_converter.json", "preprocessor_config.json", "open_clip_config.json")


# ---------------------------------------------------------------------------- finding files


def folder_of(preset):
    """(local folder, its name with the downloaded revision)."""
    place, _, rest = preset.partition(":")
    from keras_hub.src.utils import preset_utils

    if preset in preset_utils.BUILTIN_PRESETS:
        handle = preset_utils.BUILTIN_PRESETS[preset]["kaggle_handle"]
        place, rest = "kaggle", handle.removeprefix("kaggle://")
    try:
        if place == "hf":
            import huggingface_hub

            name, _, revision = rest.partition("@")
            folder = huggingface_hub.snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=_READ,
            )
            return folder, f"hf:{name}@{os.path.basename(folder)}"
        if place == "kaggle":
            import kagglehub

            folder = kagglehub.model_download(rest.removeprefix("//"))
            return folder, f"kaggle:{rest.removeprefix('//')}@{os.path.basename(folder)}"
    except Exception as error:  # these clients raise many kinds
        raise ValueError(
            f"it cannot be downloaded ({reason(error)}); check the name and the network, or give a "
            "folder"
        ) from None
    folder = os.path.expanduser(preset)
    if not os.path.isdir(folder):
        raise ValueError(
            "there is no such folder; give one, hf:OWNER/NAME[@revision], kaggle:…, or a name that "
            "KerasHub knows"
        )
    return folder, preset


def kind_of(folder):
    """(format of the folder, its configuration)."""
    found = {n: os.path.join(folder, n) for n in ("open_clip_config.json", "config.json")}
    for name, path in found.items():
        if not os.path.exists(path):
            continue
        config = _object(path)
        if name.startswith("open_clip"):
            inner = config.get("model_cfg")
            vision = inner.get("vision_cfg") if isinstance(inner, dict) else None
            if not isinstance(vision, dict):
                raise ValueError(f"{path}: has no model_cfg with a vision_cfg")
            if isinstance(vision.get("layers"), list):
                raise ValueError(f"{path}: ResNets of OpenCLIP are not supported")
            return "open_clip", inner | {"preprocess": config.get("preprocess_cfg")}
        for key, kind in (
            ("registered_name", "keras"), ("architecture", "timm"), ("model_type", "hf")
        ):  # fmt: skip
            if isinstance(config.get(key), str):
                return kind, _of_images(path, kind, key, config)
        raise ValueError(f"{path}: it is not a configuration of KerasHub, Hugging Face or timm")
    raise ValueError(f"{folder}: there is no config.json, which defines the network")


def _object(path):
    """The object in a JSON file of a folder of weights."""
    weight_files.check(path)
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return found


def _of_images(path, kind, key, config):
    """Returns the configuration if its network is for images."""
    name = config[key]
    if kind == "keras" and not name.endswith("Backbone"):
        raise ValueError(f"{path}: {name!r} is not a backbone: give the folder of its backbone")
    if kind == "hf" and not name.startswith(_HUGGING_FACE):
        raise ValueError(f"{path}: {key} {name!r} is not one of {', '.join(_HUGGING_FACE)}")
    return config


def fingerprint(folder):
    """SHA-256 of all files that are read: configuration, weights, preprocessing, tokenizer."""
    digest = hashlib.sha256()
    inner = os.path.join(folder, _TOKENIZER)
    within = os.listdir(inner) if os.path.isdir(inner) else []
    for name in sorted([*os.listdir(folder), *(os.path.join(_TOKENIZER, n) for n in within)]):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and any(fnmatch.fnmatch(name, pattern) for pattern in _READ):
            digest.update(f"{name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


def tensors(folder, names=("model.safetensors",)):
    """{name: array} of the folder's safetensors, in one file or in parts."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        parts = _object(index).get("weight_map")
        names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
        if not names or any(os.path.basename(name) != name for name in names):
            raise ValueError(f"{index}: its weight_map does not name files beside it")
    else:
        names = [n for n in names if os.path.exists(os.path.join(folder, n))][:1] or names[:1]
        pickles = [n for n in os.listdir(folder) if n.endswith((".bin", ".pt", ".pth"))]
        if pickles and not os.path.exists(os.path.join(folder, names[0])):
            raise ValueError(
                f"{os.path.join(folder, pickles[0])}: PyTorch pickles (TorchScript, too) are "
                f"not supported; convert it to {names[0]}"
            )
    found = {}
    for name in names:
        found |= weight_files.load(os.path.join(folder, name))
    return found


# ---------------------------------------------------------------------------- pixels, tokens


class Pixels(NamedTuple):
    """The preprocessing of a network.

    Attributes:
      scaled: function on pixels 0 to 255.
      words: description of scaling and resizing.
      size: (height, width), or None.
      resizing: how an image is resized.
    """

    scaled: Callable
    words: str
    size: tuple[int, int] | None
    resizing: augment.Resizing


# Names in `tf.image.resize` for Pillow's numbers of its methods.
_METHODS = {0: "nearest", 1: "lanczos3", 2: "bilinear", 3: "bicubic", 4: "area"}


def pixels_of(folder, kind, config):
    """The `Pixels` of a folder's network, from its files."""
    found = [n for n in _PREPROCESSING if os.path.exists(os.path.join(folder, n))]
    if kind in ("timm", "open_clip"):
        name = "config.json" if kind == "timm" else "open_clip_config.json"
        read = _of_timm if kind == "timm" else _of_open_clip
        return understood(read, config, os.path.join(folder, name))
    if not found:
        raise ValueError(
            f"{folder}: pixel scaling is not defined; put {' or '.join(_PREPROCESSING[:2])} "
            "beside the weights"
        )
    path = os.path.join(folder, found[0])
    return understood(_of_keras if kind == "keras" else _of_hugging_face, _object(path), path)


def understood(read, given, path):
    """Returns `read(given)`; a ValueError names the file, if its values make no sense."""
    try:
        return read(given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # invalid values
        raise ValueError(f"{path}: {reason(error)}") from None


def _of_timm(config):
    given = config.get("pretrained_cfg", {})
    mean, deviation = given.get("mean", _IMAGENET[0]), given.get("std", _IMAGENET[1])
    size = given.get("input_size", [3, None, None])[1:]
    mode = _mode(given, "crop_mode", ("center", "squash", "border"))
    share = given.get("crop_pct") or 0.875  # timm's default
    method = _named(given.get("interpolation", "bicubic"))
    if mode == "border":
        method = _padded(method, [round(255 * level) for level in mean])
    return _pixels(1 / 255, mean, deviation, size, method, share, mode == "center")


def _of_open_clip(config):
    given = config["preprocess"] or {}
    mean, deviation = given.get("mean", _CLIP[0]), given.get("std", _CLIP[1])
    size = given.get("size") or config["vision_cfg"].get("image_size")
    mode = _mode(given, "resize_mode", ("shortest", "squash", "longest"))
    method = _named(given.get("interpolation", "bicubic"))
    if mode == "longest":
        method = _padded(method, [given.get("fill_color", 0)] * 3)
    return _pixels(1 / 255, mean, deviation, size, method, 1.0, mode == "shortest")


def _mode(given, key, known):
    """How images are made square; default: the first of the known modes."""
    mode = given.get(key) or known[0]
    if mode not in known:
        raise ValueError(f"{key}={mode!r} is not one of {', '.join(known)}: set it in the file")
    return mode


def _padded(method, color):
    return f"{method}+pad={','.join(map(str, color))}"


def _of_keras(given):
    given = given["config"]
    if given.get("pad_to_aspect_ratio"):
        raise ValueError(
            "pad_to_aspect_ratio is not supported; set it to false, and "
            "crop_to_aspect_ratio as needed"
        )
    scale = np.array(1.0 if given.get("scale") is None else given["scale"])
    offset = np.array(0.0 if given.get("offset") is None else given["offset"])
    method = given.get("interpolation", "bilinear") + "+antialias" * given.get("antialias", False)
    resizing = augment.Resizing(method, square=given.get("crop_to_aspect_ratio", True))
    return _described(scale, offset, given.get("image_size"), resizing)


def _of_hugging_face(given):
    factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    mean, deviation = given.get("image_mean", _IMAGENET[0]), given.get("image_std", _IMAGENET[1])
    if not given.get("do_normalize", True):
        mean, deviation = 0.0, 1.0
    size, crop = given.get("size"), given.get("crop_size")
    longest = isinstance(size, dict) and "longest_edge" in size
    if longest or given.get("do_pad"):
        raise ValueError(
            f"{'size.longest_edge' if longest else 'do_pad'} pads images, which is not supported; "
            "give size as height and width, without do_pad"
        )
    method = _named(_METHODS.get(given.get("resample", 2), "bilinear"))
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    before = _sides(shortest or size)
    if given.get("do_center_crop") and crop:
        share = min(1.0, _sides(crop)[0] / before[0]) if before else 1.0
        # In older processors, a single number is the shorter side.
        square = bool(shortest) or not isinstance(size, dict)
        return _pixels(factor, mean, deviation, crop, method, share, square)
    if shortest and "crop_pct" in given:  # ConvNeXt's, for less than 384 pixels
        share = given["crop_pct"] if shortest < 384 else 1.0
        return _pixels(factor, mean, deviation, shortest, method, share, shortest < 384)
    # With only the shorter side, images keep their shape, and a batch has no common size.
    return _pixels(factor, mean, deviation, None if shortest else size, method, 1.0, False)


def _named(method):
    """Pillow's method by its name in `images.resize`; `random` is timm's for training."""
    method = {"random": "bicubic", "lanczos": "lanczos3", "box": "area"}.get(method, method)
    return method + "+antialias" * (method not in ("nearest", "area"))


def _sides(size):
    """(height, width) from a file's value, None if one is missing."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    size = [size, size] if isinstance(size, int) else size
    if not size or (isinstance(size, list | tuple) and None in size):
        return None
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"the size {size!r} is no height and width in pixels")
    return tuple(size)


def _pixels(factor, mean, deviation, size, method, share, square):
    mean, deviation = (np.array(values, np.float64) for values in (mean, deviation))
    if not (deviation > 0).all():
        raise ValueError(f"pixels are divided by {deviation.tolist()}; all must be above 0")
    scale, offset = factor / deviation, -mean / deviation
    return _described(scale, offset, size, augment.Resizing(method, share, square))


def _described(scale, offset, size, resizing):
    scale, offset = scale.astype(np.float32), offset.astype(np.float32)
    kept = "the center square of the image" if resizing.square else "the image"
    kept += f", {resizing.share:g} of its sides" * (resizing.share < 1)
    words = (
        f"x * {np.round(scale, 7).tolist()} + {np.round(offset, 6).tolist()}; {kept} resized by "
        f"{resizing.method}"
    )

    def scaled(pixels):
        return pixels * scale + offset

    return Pixels(scaled, words, _sides(size), resizing)


def tokens_of(kind, config):
    """(number of tokens before those of patches, whether the first is a class token)."""
    name = config.get("registered_name", config.get("model_type", config.get("architecture", "")))
    inner = config.get("config", config) if kind == "keras" else config
    inner = inner | (config.get("model_args") or {})
    registers = int(inner.get("num_register_tokens") or 0)
    if kind == "timm" and (reg := re.search(r"reg(\d+)", name)):
        registers = int(reg[1])
    name = name.lower().replace("_", "")
    if "siglip" in name or (kind == "open_clip" and "siglip" in str(config).lower()):
        return 0, False
    if "dinov" in name:
        return 1 + registers, True
    if "deit" in name:
        return 2, True
    if re.search(r"vit|clip", name) or kind == "open_clip":
        return 1, True
    return 0, False
