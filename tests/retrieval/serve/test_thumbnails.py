"""Items' images: which are shown, and that they are made once."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from retrieval.serve.thumbnails import Thumbnails


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "root").mkdir()
    for name in ("root/a.png", "outside.png"):
        Image.new("RGB", (300, 200), "red").save(tmp_path / name)
    (tmp_path / "root2").mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "root2/b.png")
    (tmp_path / "root/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "root/inner.png").symlink_to(tmp_path / "root/a.png")
    os.mkfifo(tmp_path / "root/pipe.png")
    return tmp_path


def test_only_files_below_the_root_by_real_path(folder):
    images = Thumbnails(str(folder / "root"))
    inside = [str(folder / "root/a.png"), "a.png", str(folder / "root/inner.png")]
    assert all(images.find(path) for path in inside)
    for path in (
        str(folder / "outside.png"),
        str(folder / "root/../outside.png"),
        "../outside.png",
        str(folder / "root/link.png"),
        str(folder / "root2/b.png"),
        str(folder / "root"),
        str(folder / "root/pipe.png"),
        "/etc/passwd",
        "/dev/zero",
        "a.png\0",
        "missing.png",
        "",
    ):
        assert images.find(path) is None, path


def test_without_a_root_any_image_that_is_one(folder):
    images = Thumbnails()
    assert images.find(str(folder / "outside.png"))
    real, tag = images.find("/etc/passwd")
    with pytest.raises(ValueError, match="not a JPEG"):
        images.make(real, tag, 64)


def test_made_once_until_the_file_changes(folder, monkeypatch):
    images, path = Thumbnails(), str(folder / "root/a.png")
    real, tag = images.find(path)
    first = images.make(real, tag, 100)
    with Image.open(io.BytesIO(first)) as image:
        assert image.format == "JPEG" and image.size == (128, 85)
    monkeypatch.setattr("metriclearn.datasets.image_files.read", None)
    assert images.make(real, tag, 128) is first
    monkeypatch.undo()
    Image.new("RGB", (300, 200), "blue").save(path)
    os.utime(path, ns=(1, 1))
    real, other = images.find(path)
    assert other != tag
    pixels = np.asarray(Image.open(io.BytesIO(images.make(real, other, 100))))
    assert pixels[0, 0, 2] > 200


def test_memory_is_bounded(folder):
    images = Thumbnails(kept=3000)
    real, tag = images.find(str(folder / "root/a.png"))
    for n in range(20):
        images.make(real, f"{tag}{n}", 256)
    assert images._bytes <= 3000 and images._bytes == sum(map(len, images._made.values()))


def test_an_image_of_too_many_pixels_is_refused(folder):
    images = Thumbnails(max_pixels=100)
    with pytest.raises(ValueError, match="limit"):
        images.make(*images.find(str(folder / "root/a.png")), 64)
