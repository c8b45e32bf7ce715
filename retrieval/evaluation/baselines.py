"""What needs no training: raw pixels and color histograms in place of embeddings."""

import dataclasses

import numpy as np


def raw_pixels(items):
    """The reduced picture less its mean, in place of the embedding: compared by the cosine, two
    pictures are as near as their pixels correlate, whatever their brightness and contrast."""
    pixels = items.images.reshape(len(items), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels[~pixels.any(axis=1)] = 1.0  # of one colour only: no direction is more its own
    return dataclasses.replace(items, embeddings=pixels)


def color_histogram(items):
    """Square roots of the shares of 8 x 8 x 8 colours (16 greys), whose dot product is the
    Bhattacharyya coefficient, in place of the embedding."""
    images = items.images
    if images.shape[-1] == 1:
        codes, bins = images[..., 0] >> 4, 16
    else:
        eighth = (images[..., :3] >> 5).astype(np.int64)
        codes, bins = eighth @ [64, 8, 1], 512
    flat = codes.reshape(len(items), -1) + bins * np.arange(len(items))[:, None]
    counts = np.bincount(flat.ravel(), minlength=bins * len(items)).reshape(len(items), bins)
    return dataclasses.replace(items, embeddings=np.sqrt(counts / flat.shape[1]).astype(np.float32))
