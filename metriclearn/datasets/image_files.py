"""Reads image files with Pillow, without TensorFlow; defines the accepted formats.

Images are made upright (EXIF orientation), composed over white if transparent, with 8 bits per
channel. Other formats, special files, and images with too many pixels are refused before decoding.
"""

import io
import os
import stat

import numpy as np

# The accepted formats, by Pillow's names, and their suffixes. Others are not opened: some of
# Pillow's decoders start programs (PostScript) or are rarely tested.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000  # per image
# Bytes in which a JPEG's size is searched; a file with longer notes is decoded by Pillow.
HEADER = 1 << 18
# With a crop, images keep twice the target size, so that a window of half a side is not smaller
# than the target.
CROP_RESERVE = 2

# Operations that make an image upright, by EXIF orientation; 1 is upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read(source, channels=3, least=None, box=None, max_pixels=MAX_PIXELS):
    """Decodes an image file: upright, over white, reduced while it remains large enough.

    Args:
      source: path, or the file's bytes.
      channels: 3 (RGB) or 1 (gray).
      least: minimum (height, width) of the reduced image; None: never reduced.
      box: int [4] as x1, y1, x2, y2 in pixels of the file as stored; None: no box.
      max_pixels: size above which the image is refused undecoded.

    Returns:
      (uint8 [h, w, channels]; the ratio of the reduction: 1, 2, 4 or 8; int32 [4], the box in
      pixels of the upright image before the reduction, zeros without one).

    Raises:
      ValueError: the file cannot be read or decoded, or is too large; the message gives the reason
        but not the name of the file.
    """
    from PIL import ExifTags, Image

    try:
        with _opened(source, max_pixels) as image:
            # Not ImageOps.exif_transpose: it rewrites the other tags and fails on damaged ones.
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
            lies = turn is not None and "FLIP" not in turn and turn != "ROTATE_180"
            sides = image.height, image.width
            box = _turned(box, sides, turn)
            upright = sides[::-1] if lies else sides
            ratio = 1
            if least is not None:
                room = min(side // wanted for side, wanted in zip(upright, least, strict=True))
                ratio = next(r for r in (8, 4, 2, 1) if r <= max(room, 1))
            if ratio > 1:  # JPEG: the decoder reduces by itself
                image.draft(None, (sides[1] // ratio, sides[0] // ratio))
            image.load()
            image = _flattened(image, "RGB" if channels == 3 else "L")
    except ValueError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        damage = f"the file is truncated or damaged ({' '.join(str(error).split())})"
        raise ValueError(getattr(error, "strerror", None) or damage) from None
    left = ratio // max(1, round(sides[0] / image.height), round(sides[1] / image.width))
    if left > 1:
        image = image.reduce(left)
    if turn:
        image = image.transpose(Image.Transpose[turn])
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels), ratio, box


def check(source, max_pixels=MAX_PIXELS):
    """Raises ValueError like `read` if it is not an image file, or is too large."""
    try:
        _opened(source, max_pixels).close()
    except ValueError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ValueError(f"the file is truncated or damaged ({error})") from None


def _opened(source, max_pixels):
    """The PIL image of a regular file or of bytes, not yet decoded."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(source, bytes) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("not a regular file")
    if Image.MAX_IMAGE_PIXELS and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # our limit is checked below
    try:
        image = Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        )
    except UnidentifiedImageError:
        raise ValueError(_unidentified(source)) from None
    except Image.DecompressionBombError:
        limit = f"the limit of {max_pixels:,} pixels (dataset.max_pixels)"
        raise ValueError(f"its size exceeds {limit}") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        image.close()
        raise ValueError(f"{size} pixels exceed the limit of {max_pixels:,} (dataset.max_pixels)")
    return image


def _unidentified(source):
    if isinstance(source, bytes):
        head = source[:16]
    else:
        with open(source, "rb") as file:
            head = file.read(16)
    if not head:
        return "the file is empty"
    known = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
    if head.startswith(known):
        return "the file is truncated or damaged"
    return "not a JPEG, PNG, GIF, BMP, WebP or TIFF file"


def _turned(box, sides, turn):
    """A box of an image of `sides` (height, width) after rotation."""
    if box is None or not np.any(box):
        return np.zeros(4, np.int32)
    (x1, y1, x2, y2), (height, width) = (int(v) for v in box), sides
    if turn in ("TRANSPOSE", "ROTATE_90", "ROTATE_270", "TRANSVERSE"):
        x1, y1, x2, y2 = y1, x1, y2, x2  # transposed, then flipped
        height, width = width, height
    if turn in ("FLIP_LEFT_RIGHT", "ROTATE_180", "ROTATE_270", "TRANSVERSE"):
        x1, x2 = width - x2, width - x1
    if turn in ("FLIP_TOP_BOTTOM", "ROTATE_180", "ROTATE_90", "TRANSVERSE"):
        y1, y2 = height - y2, height - y1
    return np.array([x1, y1, x2, y2], np.int32)


def _flattened(image, mode):
    """A loaded image in mode 'RGB' or 'L', with 8 bits, without transparency."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits: the upper 8
        deep = np.asarray(image)
        shift = 8 if image.mode != "F" else 0
        levels = deep.astype(np.int64) >> shift if shift else deep
        image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def is_upright_jpeg(data):
    """Whether a file's bytes, or the first `HEADER` of them, are an upright JPEG, gray or RGB.

    TensorFlow decodes such files; `read` decodes all others.
    """
    return all(upright_jpeg_sides(data))


def upright_jpeg_sides(data):
    """(height, width) of an upright JPEG, gray or RGB, from its bytes; (0, 0) for other files."""
    if data[:3] != b"\xff\xd8\xff":
        return 0, 0
    turn, components, height, width = jpeg_header(data)
    return (height, width) if turn == 1 and components in (1, 3) else (0, 0)


def jpeg_header(data):
    """(EXIF orientation, 1 to 8; components per pixel; height; width) of a JPEG file's bytes.

    The orientation is 1 if the file has no valid one; the others are 0 if it is damaged.
    """
    turn, at, data = 1, 2, memoryview(data)[:HEADER]
    while data[at : at + 1] == b"\xff" and len(data) >= at + 10:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            turn = _orientation(data[at + 10 : at + 2 + size])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            sides = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return turn, data[at + 9], *sides
        elif marker == 0xDA or size < 2:
            break
        at += 2 + size
    return turn, 0, 0, 0


def _orientation(tags):
    order = "little" if tags[:2] == b"II" else "big"
    first = int.from_bytes(tags[4:8], order)
    count = int.from_bytes(tags[first : first + 2], order)
    for place in range(first + 2, first + 2 + 12 * min(count, 256), 12):
        if int.from_bytes(tags[place : place + 2], order) == 0x0112:
            value = int.from_bytes(tags[place + 8 : place + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1
