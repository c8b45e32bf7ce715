"""Decodes an image for a model: the pixels of training, in a graph that can be exported.

JPEG files are decoded by TensorFlow and all others by Pillow, as in `metriclearn.datasets.images`.
"""

import os

import numpy as np

from metriclearn.datasets import image_files

TRAILER = 1 << 16  # bytes searched for the end of a JPEG: cameras append notes


def add_to_graph(graph, size, channels, max_pixels, resizing=None):
    """Adds the decoding to a graph.

    Args:
      graph: a `tf.Graph`.
      size: (height, width) of the result.
      channels: 3 (RGB) or 1 (gray).
      max_pixels: size above which an image file is refused.
      resizing: fields of `metriclearn.augment.Resizing` by name, None for the default.

    Returns:
      {'content', 'from_jpeg', 'pixels', 'from_pixels': names of tensors}: two pairs of input and
      output.
    """
    import tensorflow as tf

    from metriclearn import augment
    from metriclearn.datasets import images, pipeline

    how = augment.Resizing(**resizing or {})
    place = how.window and (lambda height, width, box: how.window(height, width, box, None))

    v1 = tf.compat.v1
    with graph.as_default(), v1.name_scope("decode"):
        content = v1.placeholder(tf.string, [], "content")
        pixels = v1.placeholder(tf.uint8, [None, None, channels], "pixels")
        tensors = {
            "content": content,
            "from_jpeg": images.decode_upright_jpeg(
                content,
                size,
                channels=channels,
                max_pixels=max_pixels,
                method=how.method,
                least=pipeline.least(size, how.window),
                window=place,
            ),
            "pixels": pixels,
            "from_pixels": images.resize(images.cut(pixels, place, None), size, how.method),
        }
    return {name: tensor.name for name, tensor in tensors.items()}


def decoder(session, tensors, size, channels, max_pixels, resizing=None):
    """Returns the function of `Embedder.decode`, which is safe to use from several threads.

    Args:
      session: a session whose graph contains `tensors`.
      tensors: the result of `add_to_graph`.
      size, channels, max_pixels, resizing: as in `add_to_graph`.
    """
    # Like `pipeline.least`, without importing TensorFlow: a window is cut from a larger image.
    least = tuple(image_files.CROP_RESERVE * side for side in size) if resizing else size
    of_jpeg = session.make_callable(tensors["from_jpeg"], [tensors["content"]])
    of_pixels = session.make_callable(tensors["from_pixels"], [tensors["pixels"]])

    def decode(image):
        if isinstance(image, np.ndarray):
            return of_pixels(_pixels(image, channels))
        try:
            content = image if isinstance(image, bytes) else _content(image)
            # Without an end it is truncated; Pillow reports this in one line, libjpeg in several.
            if image_files.is_upright_jpeg(content) and b"\xff\xd9" in content[-TRAILER:]:
                return of_jpeg(content)
            return of_pixels(image_files.read(content, channels, least, None, max_pixels)[0])
        except Exception as error:  # the two kinds of session raise different errors
            name = "" if isinstance(image, bytes) else f" {os.fspath(image)!r}"
            reason = _reason(image, error, max_pixels)
            raise ValueError(f"cannot read the image{name}: {reason}") from None

    return decode


def _pixels(array, channels):
    """uint8 [H, W, channels] of an array; gray and RGB are converted into each other."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"an image must be uint8 [H, W, C], not {array.dtype} {array.shape}")
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] == channels:
        return array
    if array.shape[2] == 1:
        return np.repeat(array, channels, axis=2)
    if array.shape[2] == 3:
        weights = np.array([0.299, 0.587, 0.114])
        return np.round(array @ weights).astype(np.uint8)[..., None]
    raise ValueError(f"an image must have {channels} channels, not {array.shape[2]}")


def _content(path):
    """The bytes of a regular file; others are refused, since pipes and devices may not end."""
    if not os.path.isfile(path):
        raise ValueError("not a regular file" if os.path.exists(path) else "no such file")
    with open(path, "rb") as file:
        return file.read()


def _reason(image, error, max_pixels):
    """The reason why a file, or its bytes, could not be decoded."""
    if isinstance(error, ValueError):
        return error
    try:
        image_files.read(image, max_pixels=max_pixels)
    except ValueError as clearer:
        return clearer
    return getattr(error, "strerror", None) or "the file is truncated or damaged"
