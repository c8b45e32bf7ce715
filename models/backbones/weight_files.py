"""Weight files: other files are refused in one line; safetensors are read with NumPy only.

A safetensors file has 8 bytes with the length of a header; the header, JSON of {name: {dtype,
shape, data_offsets}}; and the values. It contains no code.
"""

import json
import math
import os
import re
import struct

import numpy as np

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# First bytes of files that are mistaken for weights.
_OTHERS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file itself: run git lfs pull",
    b"<!doctype": "it is a web page, not the file: download it again",
    b"<html": "it is a web page, not the file: download it again",
    b"\x89HDF": "it is an HDF5 file of Keras",
    b"PK": "it is a zip archive of PyTorch, TorchScript or Keras: convert it",
    b"\x80": "it is a PyTorch pickle: convert it to safetensors",
    b"GGUF": "it is a GGUF file",
}
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the format's reader


def check(path, start=None):
    """Refuses a file that is missing or of another kind.

    Args:
      path: the file.
      start: bytes with which it must begin, or b''.

    Raises:
      ValueError: one line that names the file and its kind.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(64)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    if start and first.startswith(start):
        return
    for other, kind in _OTHERS.items():
        if first.lower().startswith(other.lower()):
            raise ValueError(f"{path}: {kind}")
    if start:
        raise ValueError(f"{path}: it is damaged, or of another kind")


def named_once(error, path):
    """An error's message without the path, however it is written there."""
    if not path:
        return str(error)
    place = os.path.expanduser(path)
    written = sorted({p.rstrip("/") for p in (path, place, os.path.normpath(place))})
    either = "|".join(map(re.escape, reversed(written)))
    return re.sub(rf"(?<![\w./~-])(?:{either})(/*: |/+)", "", str(error))


def load(path):
    """Reads a safetensors file.

    Args:
      path: the file.

    Returns:
      {name: array}, memory-mapped; float16 and bfloat16 as float32.

    Raises:
      ValueError: one line that names the file, and the tensor if one is damaged.
    """
    check(path)
    try:
        size = os.path.getsize(path)
        if size < 8:
            raise ValueError("it is empty or truncated")
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, size - 8):
                raise ValueError("it is truncated, or of another kind")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
    except (OSError, struct.error, ValueError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    header.pop("__metadata__", None)
    empty = size == 8 + length
    data = np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, "r", 8 + length)
    found = {name: _array(path, name, entry, data) for name, entry in header.items()}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    starts, ends = [0, *(end for _, end in spans)], [*(begin for begin, _ in spans), len(data)]
    if starts != ends:
        raise ValueError(f"{path}: its tensors are not contiguous: it is damaged")
    return found


def _array(path, name, entry, data):
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        count = math.prod(shape)
        sound = 0 <= begin <= end <= len(data) and min(shape, default=0) >= 0
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: {name}: {entry} does not describe a tensor") from None
    if kind not in _DTYPES:
        raise ValueError(f"{path}: {name} is of the type {kind}; known are {' '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[kind])
    if not sound or end - begin != count * dtype.itemsize:
        raise ValueError(
            f"{path}: {name}: {kind} {shape} is not bytes {begin} to {end} of {len(data)}: the "
            "file is truncated or damaged"
        )
    array = data[begin:end].view(dtype).reshape(shape)
    if kind == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if kind == "F16" else array
