"""Raw pixels and color histograms."""

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
