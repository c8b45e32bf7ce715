"""Raw pixels and color histograms."""

import dataclasses

import numpy as np
import pytest

from retrieval.embeddings import store
from retrieval.evaluation import baselines

pytestmark = pytest.mark.numeric


def test_baselines_see_what_they_should():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 120, (2, 6, 6, 3))
    images = np.stack([a, 2 * a + 10, b, np.full_like(a, 255), a[::-1]]).astype(np.uint8)
    names = np.array([*"12345"])
    items = store.Embedded(np.zeros((5, 1), np.float32), names, names, names, images)
    pixels = baselines.raw_pixels(items).embeddings
    assert np.isfinite(pixels).all()
    correlation = np.corrcoef(images.reshape(5, -1)[[0, 1, 2, 4]])
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    atol = (6 * 6 * 3 + 4) * 2.0**-24  # float32 sums of that many products
    np.testing.assert_allclose(
        (unit @ unit.T)[[0, 1, 2, 4]][:, [0, 1, 2, 4]], correlation, atol=atol
    )
    colours = baselines.color_histogram(items).embeddings
    similarity = colours @ colours.T
    assert similarity[0, 4] == pytest.approx(1) and similarity[0, 3] == 0  # places do not matter


def test_frozen_features_with_color_are_the_mean_of_two_cosines():
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    names = np.array([*"12345"])
    features = random.normal(size=(5, 7)).astype(np.float32)
    features[3] = 0  # of a black image, for example
    items = store.Embedded(np.zeros((5, 1), np.float32), names, names, names, images)
    items = dataclasses.replace(items, features=features)
    found = {name: pair for name, *pair in baselines.pairs(items)}
    assert list(found) == list(baselines.TITLES) and all(pair[1] is None for pair in found.values())
    frozen = found["frozen_backbone"][0].embeddings
    np.testing.assert_array_equal(frozen[:3], features[:3])
    assert frozen[3].any() and not features[3].any()
    both = found["frozen_backbone_color"][0].embeddings.astype(np.float64)
    centered = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    colors = found["color_histogram"][0].embeddings.astype(np.float64)
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    expected = (centered @ centered.T + colors @ colors.T) / 2
    # float32: the center is rounded, and the products have terms of at most 1.
    np.testing.assert_allclose(unit @ unit.T, expected, atol=(7 + 512) * 2.0**-24)
    center = features.mean(0, dtype=np.float64).astype(np.float32)
    alone = dataclasses.replace(items, features=np.tile(center, (5, 1)))
    assert np.isfinite(baselines.frozen_with_color(alone, center).embeddings).all()
