"""Tiny networks as others publish them: values are computed from names, so no file is kept."""

import json
import pathlib
import re
import struct
import zlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("published.json")


def value(name, shape):
    """Random values of a tensor, float32; `RandomState`'s numbers are the same in every NumPy."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    drawn = np.asarray(random.standard_normal(shape))
    if len(shape) > 1:
        return (drawn / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    center = 1.0 if re.search(r"(weight|lambda1|gamma)$", name) else 0.0
    return np.asarray(center + 0.1 * drawn, np.float32)


def images(size):
    """uint8 [2, size, size, 3]."""
    return np.random.RandomState(size).randint(0, 256, (2, size, size, 3)).astype(np.uint8)


def token_ids(end, padding):
    """int64 [3, 8]: texts of 8, 5 and 2 tokens, their end included."""
    ids = np.random.RandomState(7).randint(3, 38, (3, 8))
    for row, count in zip(ids, (8, 5, 2), strict=True):
        row[count - 1], row[count:] = end, padding
    return ids


def direction(width):
    """What features [B, F] are multiplied by before their sum's gradient is taken."""
    return np.random.RandomState(width).standard_normal([2, width]).astype(np.float32)


def write(path, tensors, kind="F32"):
    """A safetensors file; `kind` F32, F16 or BF16."""
    header, parts, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        array = np.asarray(array, np.float32, order="C")
        if kind == "BF16":
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
        elif kind == "F16":
            array = array.astype(np.float16)
        parts.append(array.tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def folder(at, family, tensors=None):
    """Lays out the folder of a family in `published.json`; returns its path."""
    at.mkdir(parents=True, exist_ok=True)
    for name, content in family["files"].items():
        (at / name).write_text(json.dumps(content))
    if tensors is None:
        tensors = {name: value(name, shape) for name, shape in family["shapes"].items()}
    write(at / family.get("weights", "model.safetensors"), tensors)
    return at


def dinov2_small():
    """DINOv2-S as Hugging Face publishes it, at its real shape, from the tiny one's layout."""
    tiny = json.loads(PATH.read_text())["dinov2"]
    sizes = {32: 384, 64: 1536, 4: 14, 37: 37**2 + 1}
    shapes = {}
    for name, shape in tiny["shapes"].items():
        shape = [sizes.get(n, n) for n in shape]
        for layer in range(12) if ".layer.0." in name else ():
            shapes[name.replace(".layer.0.", f".layer.{layer}.")] = shape
        if ".layer." not in name:
            shapes[name] = shape
    config = tiny["files"]["config.json"] | {
        "hidden_size": 384, "image_size": 518, "mlp_ratio": 4, "num_attention_heads": 6,
        "num_hidden_layers": 12, "patch_size": 14,
    }  # fmt: skip
    return {"files": tiny["files"] | {"config.json": config}, "shapes": shapes}
