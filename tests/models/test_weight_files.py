"""Safetensors by NumPy alone, and one line for whatever else a file is."""

import json
import os
import pathlib
import struct
import sys

import numpy as np
import pytest

from models.backbones import weight_files

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import published

TENSORS = {"a.weight": np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), "b": np.float32(3)}


@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 2**-11), ("BF16", 2**-7)])
def test_tensors_of_each_precision(tmp_path, kind, error):
    published.write(tmp_path / "w.safetensors", TENSORS, kind)
    found = weight_files.load(tmp_path / "w.safetensors")
    assert list(found) == list(TENSORS)
    for name, value in TENSORS.items():
        assert found[name].dtype == np.float32 and found[name].shape == np.shape(value)
        np.testing.assert_allclose(found[name], value, rtol=error, atol=0)


def described(path, **changes):
    """A file of one float32 tensor [2], with another description."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    text = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer, not the file itself"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"<html lang=en>", "it is a web page"),
        (b"PK\3\4" + bytes(20), "it is a zip archive of PyTorch"),
        (b"GGUF" + bytes(20), "it is a GGUF file"),
        (b"", "not a safetensors file"),
        (b"\x08\0\0\0", "not a safetensors file"),
        (struct.pack("<Q", 1 << 40) + bytes(9), "it is truncated, or of another kind"),
        (struct.pack("<Q", 4) + b"nope" + bytes(9), "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]" + bytes(9), "its header is not an object"),
        ({"dtype": "F8_E4M3"}, "w is of the type F8_E4M3; known are F64"),
        ({"shape": [3]}, r"w: F32 \[3\] is not bytes 0 to 8 of 8: the file is truncated"),
        ({"data_offsets": [4, 12]}, "is not bytes 4 to 12 of 8"),
        ({"data_offsets": [8, 0]}, "is not bytes 8 to 0"),
        ({"shape": "x"}, "does not describe a tensor"),
        ({"shape": [1], "data_offsets": [0, 4]}, "are not contiguous: it is damaged"),
        ({"shape": [1], "data_offsets": [4, 8]}, "are not contiguous: it is damaged"),
        (b"\x80\2" + bytes(20), "it is a PyTorch pickle: convert it"),
        ({"shape": [-1, -2]}, "is not bytes"),
    ],
)
def test_what_is_no_file_of_tensors(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    described(path, **content) if isinstance(content, dict) else path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        weight_files.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="none: cannot be read: No such file"):
        weight_files.check(tmp_path / "none")
    (tmp_path / "x").write_bytes(b"something else")
    weight_files.check(tmp_path / "x")
    with pytest.raises(ValueError, match="damaged, or of another kind"):
        weight_files.check(tmp_path / "x", b"PK")


@pytest.mark.parametrize("path", ("/a/net", "/a/net/", "/a//net", "~/net", "./net", "net"))
@pytest.mark.parametrize("name", ("/config.json", ""))
def test_a_path_is_named_once_however_it_is_written(path, name, monkeypatch):
    monkeypatch.setenv("HOME", "/a")
    place = os.path.expanduser(path)
    written = f"{place.rstrip('/')}{name}" if name else place
    found = weight_files.named_once(ValueError(f"{written}: it is damaged"), path)
    assert found == f"{name[1:]}: it is damaged".removeprefix(": ")
    other = f"/b{place if place[0] == '/' else '/net'}/x: it is damaged"
    assert weight_files.named_once(ValueError(other), path) == other
