"""The head: from the backbone's features and the colors of an image to its embedding.

Before any training the head ranks images like the unchanged network, so training starts from that
recall. Features and color histograms are centered, scaled to length 1, weighted, and projected to
the directions in which the training images differ most.
"""

import dataclasses

import numpy as np

from retrieval.metrics import recall_at_k

WEIGHTS = (0.0, 0.25, 0.5, 0.7, 1.0, 1.4)
COMPARED = 4000  # maximum images for choosing the weight
FITTED = 20000  # maximum images for fitting the directions


@dataclasses.dataclass(frozen=True)
class Start:
    """The initial head.

    Attributes:
      mean: float32 [F + C], mean of features and color histogram.
      weight: weight of the colors relative to the features.
      kernel: float32 [F + C, D].
    """

    mean: np.ndarray
    weight: float
    kernel: np.ndarray


def fit(values, features, train, labels, shown, *, dimensions, weight=None, seed=0):
    """Fits the initial head to images, before any training.

    Args:
      values: float32 [N, F + C]: features, then the color histogram (C may be 0).
      features: F.
      train: bool [N]: the images for the mean and the directions.
      labels: [N] products.
      shown: bool [N]: catalogue images. The others are searched among them; if there are none, each
        is searched among the others.
      dimensions: D, the length of an embedding.
      weight: weight of the colors; None: one of `WEIGHTS`, by the recall@1 of all N images.
      seed: seed for choosing the compared images, if there are many.

    Returns:
      `Start`.
    """
    random = np.random.default_rng(seed)
    mean = values[train].mean(0)
    if weight is None:
        weight = _best_weight(values - mean, features, labels, shown, random)
    rows = _some(np.flatnonzero(train), FITTED, random)
    joined = join(values[rows] - mean, features, weight)
    return Start(mean, weight, directions(joined, dimensions, random))


def join(centered, features, weight):
    """The graph's computation in NumPy: parts of length 1, the colors times their weight."""
    parts = [_unit(centered[:, :features]), weight * _unit(centered[:, features:])]
    return np.concatenate(parts, 1).astype(np.float32)


def directions(joined, dimensions, random):
    """The linear map that preserves dot products best: float32 [R, D].

    Its columns are the principal directions of the images. If the images span fewer than D,
    random orthogonal directions are added, at the scale that preserves lengths on average: other
    products differ in directions that few images do not span.
    """
    count, size = joined.shape
    joined = joined.astype(np.float64)
    if count >= size:
        spread, columns = np.linalg.eigh(joined.T @ joined)
        spread, columns = spread[::-1], columns[:, ::-1]
    else:
        _, singular, rows = np.linalg.svd(joined, full_matrices=False)
        spread, columns = singular**2, rows.T
    known = min(dimensions, int((spread > 1e-8 * spread[0]).sum()))
    kernel = columns[:, :known]
    if missing := min(dimensions, size) - known:
        others = random.normal(size=(size, missing))
        for _ in range(2):  # a second time, against rounding
            others -= kernel @ (kernel.T @ others)
        others = np.linalg.qr(others)[0]
        kernel = np.concatenate([kernel, others * np.sqrt((size - known) / missing)], 1)
    padding = np.zeros((size, max(0, dimensions - size)))
    return np.concatenate([kernel, padding], 1).astype(np.float32)


def _best_weight(centered, features, labels, shown, random):
    """The smallest of the best weights."""
    if centered.shape[1] == features:
        return 0.0
    rows = np.sort(_some(np.arange(len(labels)), COMPARED, random))
    labels, shown = labels[rows], shown[rows]
    found = []
    for weight in WEIGHTS:
        e = join(centered[rows], features, weight)
        sides = (e[~shown], labels[~shown], e[shown], labels[shown]) if shown.any() else (e, labels)
        found.append(recall_at_k(*sides, ks=(1,))[1])
    return WEIGHTS[int(np.argmax(found))]


def _some(rows, most, random):
    return rows if len(rows) <= most else random.permutation(rows)[:most]


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
