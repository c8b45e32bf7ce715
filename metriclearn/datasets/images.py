"""Decodes image files to tensors, for training, embedding, search and pages.

JPEG files are decoded by TensorFlow: only the requested window, and at 1/2, 1/4 or 1/8 by the DCT
if the target is at least that much smaller, which is several times cheaper. Other formats, CMYK,
and JPEG files that are stored rotated are decoded by Pillow (`image_files.read`). Both give the
same pixels up to rounding:

  every format   Grayscale and palettes become RGB (or gray with channels=1). The EXIF orientation
                 is applied, so that images are upright; boxes refer to the file as stored and are
                 rotated with the image. An image with more than `max_pixels` is refused before
                 decoding, by the size in its header.
  JPEG           Baseline, progressive, grayscale and CMYK.
  PNG, WebP      Transparency is composed over white; a cut-out product would otherwise have an
                 arbitrary background. Of 16 bits, the upper 8 are used.
  GIF, WebP, TIFF  The first frame of an animation or of several pages.
"""

import numpy as np
import tensorflow as tf

from metriclearn.datasets.image_files import HEADER, MAX_PIXELS, is_upright_jpeg, read

# Chroma upsampling reads one sample beyond the window; with this margin the window's pixels equal
# those of a full decode.
HALO = 2
# Added before the cast that cuts off: a half, and a little so that values halfway between two gray
# levels, which weights with few digits often give, fall on one side whatever their last bit.
HALF = 0.5 + 2**-9
# A JPEG up to the start of its scan, one pixel: read instead of files that are not JPEG.
JPEG_HEADER = bytes.fromhex("ffd8ffc0000b080001000101011100ffda0008010100003f00")
# The start of a JPEG file of the usual kind: a JFIF segment of 16 bytes, then quantization tables.
# 0xAA matches any byte.
JFIF = bytes.fromhex("ffd8ffe000104a46494600" + "aa" * 9 + "ffdb" + "aa" * 2)


def upright_jpeg(data):
    """bool: whether a file's bytes, a string scalar, are an upright JPEG, gray or RGB."""

    def check(content):
        return np.bool_(is_upright_jpeg(np.asarray(content, object).item()))

    def look():
        head = tf.strings.substr(data, 0, HEADER)  # less data to copy from TensorFlow
        found = tf.numpy_function(check, [head], tf.bool, stateful=False)
        return tf.ensure_shape(found, [])

    # Most files have JFIF, then tables, without EXIF in between: no need for Python.
    start = tf.io.decode_raw(tf.strings.substr(data, 0, len(JFIF)), tf.uint8, fixed_length=24)
    # Not `==`: in a graph outside tf.function it compares objects.
    jfif = tf.equal(start, list(JFIF)) | [byte == 0xAA for byte in JFIF]
    return tf.cond(tf.reduce_all(jfif), lambda: True, look)


def _ratio(sides, least):
    """The largest of 1, 2, 4, 8 that reduces int32 [..., 2] sides to at least `least`."""
    if least is None:
        return tf.ones_like(sides[..., 0])
    room = tf.reduce_min(sides // least, -1, keepdims=True)
    return tf.reduce_max(tf.where(room >= [2, 4, 8], [2, 4, 8], 1), -1)


def _log2(ratio):
    return tf.reduce_sum(tf.cast(ratio[..., None] >= [2, 4, 8], tf.int32), -1)


def cut(image, window, box):
    """The part of uint8 [h, w, c] chosen by `window`, as in `decode`."""
    return _slice(image, *place(window, tf.shape(image)[:2], 1, box))


def _slice(image, corner, size):
    return tf.slice(image, tf.concat([corner, [0]], 0), tf.concat([size, [-1]], 0))


def place(window, sides, ratio, box):
    """(int32 [2] y, x; int32 [2] h, w) of a window, clipped to the image, at least one pixel.

    Args:
      window: as in `decode`; None: the whole image.
      sides: int32 [2], height and width of the reduced image.
      ratio: int32 scalar, the reduction of the image.
      box: as in `decode`.

    If `window` takes a batch, all may have a leading dimension.
    """
    if window is None:
        return tf.zeros_like(sides), sides
    if box is None:
        reduced = tf.zeros([4], tf.int32)
    else:
        # Floor and ceiling, so that the reduced box contains the whole object.
        box = tf.cast(box, tf.int32)
        ratio = tf.expand_dims(ratio, -1)
        reduced = tf.concat([box[..., :2] // ratio, -(-box[..., 2:] // ratio)], -1)
    corner, size = tf.split(window(*tf.unstack(sides, axis=-1), reduced), 2, -1)
    corner = tf.maximum(tf.minimum(corner, sides - 1), 0)
    return corner, tf.maximum(tf.minimum(size, sides - corner), 1)


def ratios(least):
    """The reductions of an image that keeps `least`, in the order of their logarithms."""
    return (1,) if least is None else (1, 2, 4, 8)


def jpeg_shape(data):
    """int32 [3]: height, width and components in a JPEG file's header; ones for another file."""
    is_jpeg = tf.equal(tf.strings.substr(data, 0, 3), b"\xff\xd8\xff")
    return tf.io.extract_jpeg_shape(tf.where(is_jpeg, data, JPEG_HEADER))


def small_enough(sides, max_pixels):
    """bool: whether an image of int32 [..., 2] sides may be decoded."""
    return tf.reduce_prod(tf.cast(sides, tf.int64), -1) <= max_pixels


def plan_jpeg(sides, least, window, box):
    """The part of a JPEG of `sides` to decode; other arguments as in `decode`.

    Returns:
      (int32 scalar, the binary logarithm of the reduction; int32 [4], y, x, h, w of the part to
      decode; int32 [3], int32 [3], begin and size of the window's slice of that part); with a
      leading dimension if `sides` and `window` have one.
    """
    ratio = _ratio(sides, least)
    sides = -(-sides // tf.expand_dims(ratio, -1))
    corner, size = place(window, sides, ratio, box)
    low = tf.maximum(corner - HALO, 0)
    part = tf.concat([low, tf.minimum(corner + size + HALO, sides) - low], -1)
    depth = tf.zeros_like(sides[..., :1])
    return (
        _log2(ratio),
        part,
        tf.concat([corner - low, depth], -1),
        tf.concat([size, depth - 1], -1),
    )


def decode(data, *, channels=3, least=None, window=None, box=None, max_pixels=MAX_PIXELS):
    """Decodes an image or a window of it, reduced while it remains large enough.

    Args:
      data: string scalar, the file's bytes.
      channels: 3 (RGB) or 1 (gray).
      least: minimum (height, width) of the whole reduced image; None: never reduced.
      window: function (height, width, box) -> int32 [4] as y, x, h, w, all in pixels of the reduced
        upright image; it is clipped to the image. None: the whole image.
      box: int32 [4] as x1, y1, x2, y2 in pixels of the file; `window` gets it rotated and reduced.
      max_pixels: size above which the image is refused undecoded.

    Returns:
      (uint8 [h, w, channels], int32 scalar ratio of the reduction: 1, 2, 4 or 8).
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels!r}")
    shape = jpeg_shape(data)
    sides = shape[:2]
    direct = upright_jpeg(data) & (shape[2] < 4) & small_enough(sides, max_pixels)
    level, part, begin, kept = plan_jpeg(sides, least, window, box)

    def jpeg(ratio):
        if window is None:
            return tf.io.decode_jpeg(data, channels=channels, ratio=ratio), tf.constant(ratio)
        image = tf.io.decode_and_crop_jpeg(data, part, channels=channels, ratio=ratio)
        return image, tf.constant(ratio)

    def other():
        def by_pillow(content, box):
            content = np.asarray(content, object).item()
            image, ratio, box = read(content, channels, least, box, max_pixels)
            return image, np.int32(ratio), box

        given = tf.zeros([4], tf.int32) if box is None else tf.cast(box, tf.int32)
        image, ratio, turned = tf.numpy_function(
            by_pillow, [data, given], [tf.uint8, tf.int32, tf.int32], stateful=False
        )
        image = tf.ensure_shape(image, [None, None, channels])
        ratio, turned = tf.ensure_shape(ratio, []), tf.ensure_shape(turned, [4])
        place_of = place(window, tf.shape(image)[:2], ratio, None if box is None else turned)
        return _slice(image, *place_of), ratio

    # One flat choice with few operations: unselected branches still cost time, possibly more than
    # decoding a small image.
    ways = [*(lambda r=r: jpeg(r) for r in ratios(least)), other]
    image, ratio = tf.switch_case(tf.where(direct, level, len(ways) - 1), ways)
    if window is not None:
        image = tf.slice(image, tf.where(direct, begin, 0), tf.where(direct, kept, -1))
    return tf.ensure_shape(image, [None, None, channels]), ratio


def decode_upright_jpeg(
    data, size, *, channels=3, max_pixels=MAX_PIXELS, least=None, window=None, method="bilinear"
):
    """Decodes and resizes an upright JPEG like `decode` and `resize`, with TensorFlow's ops only.

    A graph without Python functions can be exported and run without Python.

    Args:
      data: string scalar, the bytes of a file for which `is_upright_jpeg` is true.
      size: (height, width) of the result.
      channels: 3 (RGB) or 1 (gray).
      max_pixels: size above which the op fails, before it decodes.
      least, window: as in `decode`; default: the size.
      method: as in `resize`.

    Returns:
      uint8 [*size, channels].
    """
    sides = jpeg_shape(data)[:2]
    check = tf.debugging.Assert(small_enough(sides, max_pixels), ["too many pixels"])
    with tf.control_dependencies([check]):
        level, part, begin, kept = plan_jpeg(sides, least or size, window, None)
        level = tf.identity(level)

    def jpeg(ratio):
        if window is None:
            return tf.io.decode_jpeg(data, channels=channels, ratio=ratio)
        return tf.io.decode_and_crop_jpeg(data, part, channels=channels, ratio=ratio)

    image = tf.switch_case(level, [lambda r=r: jpeg(r) for r in ratios(size)])
    if window is not None:
        image = tf.slice(image, begin, kept)
    return resize(tf.ensure_shape(image, [None, None, channels]), size, method)


def resize(image, size, method="bilinear"):
    """uint8 [h, w, c] -> uint8 [size[0], size[1], c]; the aspect ratio is not kept.

    Args:
      image: the pixels.
      size: (height, width).
      method: method of `tf.image.resize`; with `+antialias` as in Pillow. With `+pad=R,G,B` at the
        end the aspect ratio is kept: the image is centered, with borders of that color.
    """
    method, _, color = method.partition("+pad=")
    if color:
        return _padded(image, size, method, [int(level) for level in color.split(",")])
    if method == "bilinear":  # the op itself: `tf.image.resize` adds overhead
        resized = tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)
        resized = tf.squeeze(resized, 0)
    else:
        method, _, smooth = method.partition("+")
        resized = tf.image.resize(image, size, method=method, antialias=bool(smooth))
        resized = tf.cast(resized, tf.float32)
    if method not in ("bilinear", "nearest", "area"):  # the others overshoot
        resized = tf.clip_by_value(resized, 0.0, 255.0)
    return tf.cast(resized + HALF, tf.uint8)


def _padded(image, size, method, color):
    """The image within the size, with its aspect ratio and borders of a color [c]."""
    sides = tf.cast(tf.shape(image)[:2], tf.float64)
    ratio = tf.reduce_max(sides / size)
    inner = tf.maximum(tf.cast(tf.round(sides / ratio), tf.int32), 1)
    border = size - inner
    around = tf.stack([border // 2, border - border // 2], 1)
    image = tf.cast(resize(image, inner, method), tf.int32) - color
    image = tf.pad(image, tf.concat([around, [[0, 0]]], 0)) + color
    return tf.ensure_shape(tf.cast(image, tf.uint8), [*size, None])


def resize_windows(canvas, sides, size, method="bilinear"):
    """Resizes the upper left corners of a batch's images.

    Bilinear images are made by two programs compiled by XLA. They equal those of `resize` but
    for rounding: a few in a million values differ by 1, none if target sides are powers of two.

    Args:
      canvas: uint8 [B, H, W, C].
      sides: int32 [B, 2], height and width of each corner.
      size: height and width of the result.
      method: method of `tf.image.resize`.

    Returns:
      uint8 [B, size[0], size[1], C].
    """
    if method == "bilinear":
        down, across = (_taps(sides[:, i], size[i]) for i in (0, 1))
        return _blend_columns(_blend_rows(canvas, *down), *across)
    return tf.map_fn(
        lambda item: resize(_slice(item[0], [0, 0], item[1]), size, method),
        (canvas, sides),
        fn_output_signature=tf.TensorSpec([*size, canvas.shape[3]], tf.uint8),
    )


def _taps(sides, wanted):
    """For `wanted` samples in each of [B] sides: the two neighboring pixels, and the second's
    weight.

    Computed as in `tf.image.resize`; a compiler might round the weights differently.
    """
    scale = tf.cast(sides[:, None], tf.float32) / wanted
    at = tf.maximum((tf.range(wanted, dtype=tf.float32) + 0.5) * scale - 0.5, 0.0)
    low = tf.floor(at)
    first = tf.cast(low, tf.int32)
    return first, tf.minimum(first + 1, sides[:, None] - 1), (at - low)[:, :, None]


# Two programs: in one, the compiler would blend rows anew for each of the columns that it blends.
@tf.function(jit_compile=True, autograph=False)
def _blend_rows(canvas, first, second, share):
    """float32 [B, high, W, C] of uint8 [B, H, W, C]: whole rows, whose values lie side by side."""
    count, _, width, channels = tf.unstack(tf.shape(canvas))
    rows = tf.reshape(canvas, [count, -1, width * channels])
    first, second = (
        tf.cast(tf.gather(rows, at, batch_dims=1), tf.float32) for at in (first, second)
    )
    return tf.reshape(first + (second - first) * share, [count, -1, width, channels])


@tf.function(jit_compile=True, autograph=False)
def _blend_columns(rows, first, second, share):
    """uint8 [B, high, wide, C] of float32 [B, high, W, C]."""
    first, second = (tf.gather(rows, at, batch_dims=1, axis=2) for at in (first, second))
    return tf.cast(first + (second - first) * share[:, None] + HALF, tf.uint8)
