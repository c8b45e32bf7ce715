"""Pictures as tensors: decoding, at a scale, of a window, whatever the file holds.

What becomes of each kind of file:
  JPEG   grey, colour, progressive and CMYK become RGB (or grey when channels=1). Only the window
         asked for is decoded, and where the target is at least twice smaller than the picture it is
         decoded at 1/2, 1/4 or 1/8 by the DCT, which is several times cheaper.
  PNG    palettes and grey become RGB; transparency is laid over white (a cut-out product would
         otherwise show the arbitrary colour behind it); 16 bits keep their upper 8.
  GIF    the first frame, also of an animation. BMP and WebP are read as they are (no alpha).
EXIF orientation is ignored: pixels and boxes are those of the file as stored.
"""

import tensorflow as tf

# Chroma upsampling looks one sample beyond the window; decoding this much more makes the window's
# pixels the very ones that a full decode gives.
HALO = 2


def _decode_png(data):
    """uint8 [h, w, 3]; what is transparent is laid over white."""
    # As many channels as the file has: asked for four, libpng's filler for the alpha of a palette
    # is the largest palette index instead of 255.
    image = tf.io.decode_png(data, channels=0)
    channels = tf.shape(image)[2]
    # Not `==`: in a graph outside tf.function it compares objects.
    colours = channels - tf.where(tf.equal(channels % 2, 0), 1, 0)

    def composite():
        wide = tf.cast(image, tf.int32)
        alpha = wide[..., colours:]
        return tf.cast((wide[..., :colours] * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    image = tf.cond(colours < channels, composite, lambda: image)
    return tf.broadcast_to(image, [*tf.unstack(tf.shape(image)[:2]), 3])


def _shrink(image, ratio):
    """uint8 [h, w, c] -> its means over ratio x ratio blocks, [ceil(h / ratio), ...]."""
    # The last blocks are filled up with the picture's edge; pooling's own padding would move all.
    shape = tf.shape(image)
    image = tf.pad(image, [[0, -shape[0] % ratio], [0, -shape[1] % ratio], [0, 0]], "SYMMETRIC")
    pooled = tf.nn.avg_pool2d(tf.cast(image, tf.float32)[None], ratio, ratio, "VALID")[0]
    return tf.cast(tf.round(pooled), tf.uint8)


def _decode_other(data, channels):
    """PNG, GIF, BMP and WebP -> uint8 [h, w, channels]."""
    is_png = tf.equal(tf.strings.substr(data, 0, 4), b"\x89PNG")
    image = tf.cond(
        is_png,
        lambda: _decode_png(data),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    if channels == 1:
        image = tf.image.rgb_to_grayscale(image)
    return image


def _scale(height, width, least):
    """Index into (1, 2, 4, 8): the largest reduction that leaves at least `least` pixels."""
    room = tf.minimum(height // least[0], width // least[1])
    return tf.reduce_sum(tf.cast(room >= [2, 4, 8], tf.int32))


def cut(image, ratio, window, box):
    """The part of a picture, reduced by `ratio`, that `window` chooses.

    Args:
      image: uint8 [h, w, c].
      ratio: int32 scalar, by how much the picture is reduced.
      window: as in `decode`.
      box: int32 [4] as x1, y1, x2, y2 in pixels of the file.

    Returns:
      uint8 [h', w', c].
    """
    corner, size = _place(window, tf.shape(image)[:2], ratio, box)
    return _slice(image, corner, size)


def _slice(image, corner, size):
    return tf.slice(image, tf.pad(corner, [[0, 1]]), tf.pad(size, [[0, 1]], constant_values=-1))


def _place(window, sides, ratio, box):
    """(int32 [2] y, x; int32 [2] h, w) of the window, within the picture, at least one pixel."""
    # Floor and ceiling, so that the reduced box still holds all of the object.
    reduced = tf.concat([box[:2] // ratio, -(-box[2:] // ratio)], 0)
    wanted = window(sides[0], sides[1], reduced)
    corner = tf.clip_by_value(wanted[:2], 0, sides - 1)
    return corner, tf.clip_by_value(wanted[2:], 1, sides - corner)


def decode(data, *, channels=3, least=None, window=None, box=None):
    """Decodes a picture, or a window of it, reduced as far as it stays large enough.

    Args:
      data: string scalar, the file's bytes.
      channels: 3 (RGB) or 1 (grey).
      least: (height, width) that the whole reduced picture keeps at least; None: never reduced.
      window: function (height, width, box) -> int32 [4] as y, x, h, w, all in pixels of the reduced
        picture; it is clipped to the picture. None: the whole picture.
      box: int32 [4] as x1, y1, x2, y2 in pixels of the file, handed to `window` reduced alike.

    Returns:
      (uint8 [h, w, channels], int32 scalar ratio of the reduction: 1, 2, 4 or 8).
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels!r}")
    box = tf.zeros([4], tf.int32) if box is None else tf.cast(box, tf.int32)

    def jpeg():
        shape = tf.io.extract_jpeg_shape(data)

        def at(ratio):
            if window is None:
                return tf.io.decode_jpeg(data, channels=channels, ratio=ratio)
            sides = -(-shape[:2] // ratio)
            corner, size = _place(window, sides, ratio, box)
            low = tf.maximum(corner - HALO, 0)
            high = tf.minimum(corner + size + HALO, sides)
            part = tf.concat([low, high - low], 0)
            image = tf.io.decode_and_crop_jpeg(data, part, channels=channels, ratio=ratio)
            return _slice(image, corner - low, size)

        if least is None:
            return at(1), tf.constant(1)
        index = _scale(shape[0], shape[1], least)
        image = tf.switch_case(index, [lambda r=r: at(r) for r in (1, 2, 4, 8)])
        return image, tf.bitwise.left_shift(1, index)

    def other():
        image, ratio = _decode_other(data, channels), tf.constant(1)
        if least is not None:
            index = _scale(tf.shape(image)[0], tf.shape(image)[1], least)
            ratio = tf.bitwise.left_shift(1, index)
            image = tf.switch_case(
                index, [lambda: image, *(lambda r=r: _shrink(image, r) for r in (2, 4, 8))]
            )
        return (image if window is None else cut(image, ratio, window, box)), ratio

    is_jpeg = tf.equal(tf.strings.substr(data, 0, 3), b"\xff\xd8\xff")
    image, ratio = tf.cond(is_jpeg, jpeg, other)
    return tf.ensure_shape(image, [None, None, channels]), ratio


def resize(image, size, method="bilinear"):
    """uint8 [h, w, c] -> uint8 [size[0], size[1], c]; the aspect ratio is not kept."""
    resized = tf.image.resize(image, size, method=method)
    if method not in ("bilinear", "nearest", "area"):  # the others overshoot
        resized = tf.clip_by_value(resized, 0.0, 255.0)
    return tf.cast(tf.round(tf.cast(resized, tf.float32)), tf.uint8)
