"""Decoding: every kind of file, reduced, cut and turned; the two decoders agree."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from metriclearn.datasets import images


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


def test_resizing_a_batch_of_windows_equals_one_by_one():
    rng = np.random.default_rng(4)
    canvas = rng.integers(0, 256, (40, 64, 64, 3), np.uint8)
    sides = rng.integers(1, 65, (40, 2)).astype(np.int32)
    for method in ("bilinear", "nearest"):
        together = images.resize_windows(tf.constant(canvas), tf.constant(sides), (16, 32), method)
        for i, (h, w) in enumerate(sides):
            assert (images.resize(canvas[i, :h, :w], (16, 32), method) == together[i]).numpy().all()


def test_grey_and_cmyk_and_progressive_jpeg():
    picture = photo(32, 48)
    rgb = np.asarray(picture, int)
    for data in (
        encoded(picture.convert("CMYK"), "JPEG", quality=95),
        encoded(picture, "JPEG", quality=95, progressive=True),
    ):
        assert np.abs(decode(data)[0] - rgb).mean() < 6
    grey = decode(encoded(picture.convert("L"), "JPEG"))[0]
    assert grey.shape == (32, 48, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert decode(encoded(picture, "JPEG"), channels=1)[0].shape == (32, 48, 1)


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = [200, 100, 0, 255]
    rgba[1] = [0, 0, 0, 51]
    rgba[1, 2] = [255, 0, 0, 0]
    image, _ = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert image[0, 0].tolist() == [200, 100, 0]
    assert image[1, 0].tolist() == [204, 204, 204] and image[1, 2].tolist() == [255, 255, 255]
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 8, 7])
    data = encoded(palette, "PNG", transparency=0)
    assert decode(data)[0].tolist() == [[[255, 255, 255]]]
    assert decode(encoded(palette, "PNG"))[0].tolist() == [[[9, 8, 7]]]
    shown = decode(encoded(Image.fromarray(rgba), "WEBP", lossless=True))[0]
    assert shown[0, 0].tolist() == [200, 100, 0] and shown[1, 0].tolist() == [204, 204, 204]


def test_sixteen_bits_keep_the_upper_eight():
    deep = np.asarray([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    image, _ = decode(encoded(Image.fromarray(deep), "PNG"), channels=1)
    assert image.ravel().tolist() == [0, 0, 1, 0x12, 0xFF]


def test_animation_gives_its_first_frame():
    frames = [Image.new("P", (5, 4), i) for i in range(3)]
    for i, frame in enumerate(frames):
        frame.putpalette([0, 0, 0, 10, 20, 30, 90, 90, 90])
        frame.putpixel((i, 0), 1)
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, _ = decode(data)
    assert image.shape == (4, 5, 3)
    assert image[0, 0].tolist() == [10, 20, 30] and not image[0, 1:].any()
    frames = [photo(9, 9), photo(9, 9, 1)]
    for kind in ("WEBP", "TIFF"):
        options = {"save_all": True, "append_images": frames[1:], "lossless": True}
        data = encoded(frames[0], kind, **options)
        assert np.abs(decode(data)[0] - np.asarray(frames[0], int)).mean() < 8, kind


@pytest.mark.parametrize("kind", ["BMP", "WEBP"])
def test_bmp_and_webp(kind):
    picture = photo(16, 20)
    image, _ = decode(encoded(picture, kind))
    assert np.abs(image - np.asarray(picture, int)).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decoding_at_a_reduced_scale(kind):
    picture = photo(100, 203)
    data = encoded(picture, kind)
    full = decode(data)[0]
    for least, ratio in (
        ((100, 203), 1),
        ((51, 20), 1),
        ((50, 101), 2),
        ((13, 26), 4),
        ((9, 9), 8),
    ):
        image, reduced = decode(data, least=least)
        assert reduced == ratio, least
        assert image.shape == (-(-100 // ratio), -(-203 // ratio), 3)
        inner = full[: 100 // ratio * ratio, : 203 // ratio * ratio]
        blocks = inner.reshape(100 // ratio, ratio, 203 // ratio, ratio, 3).mean((1, 3))
        assert np.abs(image[: len(blocks), : blocks.shape[1]] - blocks).mean() < 4


def test_fused_crop_gives_the_pixels_of_crop_after_decode():
    rng = np.random.default_rng(2)
    noisy = Image.fromarray(rng.integers(0, 256, (67, 90, 3), np.uint8))
    for data in (encoded(noisy, "JPEG"), encoded(noisy, "JPEG", subsampling=1)):
        for least in (None, (30, 40)):
            whole, ratio = decode(data, least=least)
            for _ in range(8):
                y, x = rng.integers(0, [len(whole) - 3, whole.shape[1] - 3])
                window = [y, x, rng.integers(1, len(whole) - y), rng.integers(1, 40)]
                part = decode(
                    data, least=least, window=lambda *_, w=window: tf.constant(w, tf.int32)
                )
                h = min(window[2], len(whole) - y)
                w = min(window[3], whole.shape[1] - x)
                assert (part[0] == whole[y : y + h, x : x + w]).all() and part[1] == ratio


def test_boxes_are_reduced_with_the_picture_and_windows_clipped():
    data = encoded(photo(80, 80), "JPEG")
    seen = []

    def window(height, width, box):
        seen.append((int(height), int(width), np.asarray(box).tolist()))
        return tf.constant([-5, 30, 1000, 1000])

    image, ratio = decode(data, least=(20, 20), window=window, box=tf.constant([9, 10, 41, 79]))
    assert ratio == 4 and seen[-1] == (20, 20, [2, 2, 11, 20])
    assert image.shape == (20, 1, 3)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("least", [None, (10, 10)])
def test_photos_are_turned_as_the_camera_noted(turn, least):
    """Upright as Pillow turns them, with their boxes."""
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = photo(40, 60)
    data = encoded(picture, "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(upright.reduce(4 if least else 1), int)
    image, ratio = decode(data, least=least)
    assert ratio == (4 if least else 1)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 5
    # A box around the file's upper left part, marked in a mask that Pillow turns likewise.
    mask = Image.new("L", (60, 40))
    mask.paste(255, (4, 8, 24, 20))
    mask = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(mask, "PNG", exif=exif))))
    )
    y, x = np.nonzero(mask)
    seen = []

    def window(height, width, box):
        seen.append(np.asarray(box).tolist())
        return tf.stack([0, 0, height, width])

    decode(data, window=window, box=tf.constant([4, 8, 24, 20]))
    assert seen[-1] == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_palettes_of_every_format(kind):
    palette = photo(16, 20).quantize(40)
    image, _ = decode(encoded(palette, kind))
    assert (image == np.asarray(palette.convert("RGB"), int)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_upright_jpeg_is_decoded_alike_by_ops_alone(channels):
    """At every reduction; no function of Python is in the graph, and a large one is refused."""
    for sides in ((30, 50), (64, 48), (300, 200)):
        data = encoded(photo(*sides), "JPEG")
        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            options = {"channels": channels, "max_pixels": 50_000}
            image = images.decode_upright_jpeg(tf.constant(data), (24, 32), **options)
            assert not any("PyFunc" in op.type for op in graph.get_operations())
            if sides == (300, 200):
                with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
                    session.run(image)
                continue
            found = session.run(image)
        whole = images.decode(tf.constant(data), channels=channels, least=(24, 32))[0]
        np.testing.assert_array_equal(found, images.resize(whole, (24, 32)))
