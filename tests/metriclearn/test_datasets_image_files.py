"""Image files by Pillow: the accepted formats and sizes."""

import io
import os
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from metriclearn.datasets import image_files, images


def photo(height, width, seed=0):
    """A smooth RGB picture, which JPEG keeps nearly as it is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data, **options):
    image, ratio = images.decode(tf.constant(data), **options)
    return np.asarray(image).astype(int), int(ratio)


def test_too_large_an_image_is_refused_by_its_header():
    for kind in ("JPEG", "PNG"):
        data = encoded(photo(30, 40), kind)
        assert decode(data, max_pixels=1200)[0].shape == (30, 40, 3)
        with pytest.raises(ValueError, match="40 x 30 pixels exceed the limit"):
            decode(data, max_pixels=1199)


def test_only_the_accepted_formats_are_opened(tmp_path):
    script = tmp_path / "a.jpg"
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n")
    with pytest.raises(ValueError, match="not a JPEG, PNG, GIF, BMP, WebP or TIFF file"):
        images.read(script)
    os.mkfifo(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        images.read(tmp_path / "b.jpg")


@pytest.mark.parametrize("side", [15_000, 1 << 30])
def test_numbers_of_a_header_are_not_trusted(side):
    png = bytearray(encoded(photo(9, 9), "PNG"))
    png[16:24] = side.to_bytes(4, "big") * 2  # width and height
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"exceeds? the limit of 100,000,000.*dataset.max_pixels"):
        image_files.read(bytes(png))


def test_boxes_are_turned_with_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, ratio, box = image_files.read(
        encoded(photo(40, 60), "JPEG", exif=exif), box=[4, 8, 24, 20]
    )
    assert pixels.shape == (60, 40, 3) and ratio == 1 and box.tolist() == [20, 4, 32, 24]
