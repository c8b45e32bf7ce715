"""Baselines that need no training: other vectors of the same images instead of embeddings.

They are compared by cosine. The last two need a model with `frozen_features`, see
`retrieval.embeddings.passes.embed_datasets`.
"""

import dataclasses
import functools

import numpy as np

TITLES = {
    "raw_pixels": "raw pixels",
    "color_histogram": "color histogram",
    "frozen_backbone": "frozen backbone",
    "frozen_backbone_color": "frozen backbone with color",
}


def pairs(queries, catalogue=None):
    """Yields (name in `TITLES`, queries, catalogue) of every baseline that is possible.

    Args:
      queries: `Embedded` with images.
      catalogue: `Embedded`; None: each query is searched among the others.
    """
    items = queries if catalogue is None else catalogue
    ways = {"raw_pixels": raw_pixels, "color_histogram": color_histogram}
    if queries.features is not None and items.features is not None:
        center = items.features.mean(axis=0, dtype=np.float64).astype(np.float32)
        ways["frozen_backbone"] = frozen
        ways["frozen_backbone_color"] = functools.partial(frozen_with_color, center=center)
    for name, way in ways.items():
        yield name, way(queries), None if catalogue is None else way(catalogue)


def raw_pixels(items):
    """Replaces each embedding by the image's pixels minus their mean.

    The cosine of two such vectors is the correlation of the images' pixels, which does not depend
    on brightness and contrast.

    Args:
      items: `Embedded` with images.

    Returns:
      `Embedded` with float32 embeddings [N, H * W * C].
    """
    pixels = items.images.reshape(len(items), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels[~pixels.any(axis=1)] = 1.0  # an image of one color has no direction
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


def frozen(items):
    """Replaces each embedding by the features of the backbone before training, [N, F]."""
    features = items.features.astype(np.float32)
    features[~features.any(axis=1)] = 1.0  # zeros have no direction
    return dataclasses.replace(items, embeddings=features)


def frozen_with_color(items, center):
    """Replaces each embedding by the centered features and the color histogram, concatenated.

    Both have length 1, so that the cosine is the mean of the two cosines.

    Args:
      items: `Embedded` with images and features [N, F].
      center: [F], the mean features of the catalogue.

    Returns:
      `Embedded` with float32 embeddings [N, F + 512], or [N, F + 16] for gray images.
    """
    features = items.features - center
    length = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.where(length > 0, length, 1)
    both = [features, color_histogram(items).embeddings]
    return dataclasses.replace(items, embeddings=np.concatenate(both, 1).astype(np.float32))
