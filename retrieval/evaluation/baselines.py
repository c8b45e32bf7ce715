"""Baselines that need no training: raw pixels and color histograms in place of embeddings."""

import dataclasses

import numpy as np


def raw_pixels(items):
    """Replaces each embedding by the image's pixels less their mean.

    The cosine of two such vectors is the correlation of the images' pixels, whatever their
    brightness and contrast.

    Args:
      items: `Embedded` with images.

    Returns:
      `Embedded` with float32 embeddings [N, H * W * C].
    """
    pixels = items.images.reshape(len(items), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels[~pixels.any(axis=1)] = 1.0  # an image of one color has no direction of its own
    return dataclasses.replace(items, embeddings=pixels)


def color_histogram(items):
    """Replaces each embedding by the square roots of its image's color histogram.

    The dot product of two such vectors is the Bhattacharyya coefficient of the histograms.

    Args:
      items: `Embedded` with images.

    Returns:
      `Embedded` with float32 embeddings: [N, 512] for 8 x 8 x 8 colors, [N, 16] for gray images.
    """
    images = items.images
    if images.shape[-1] == 1:
        codes, bins = images[..., 0] >> 4, 16
    else:
        eighth = (images[..., :3] >> 5).astype(np.int64)
        codes, bins = eighth @ [64, 8, 1], 512
    flat = codes.reshape(len(items), -1) + bins * np.arange(len(items))[:, None]
    counts = np.bincount(flat.ravel(), minlength=bins * len(items)).reshape(len(items), bins)
    return dataclasses.replace(items, embeddings=np.sqrt(counts / flat.shape[1]).astype(np.float32))
