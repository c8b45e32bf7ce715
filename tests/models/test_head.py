"""Where the head starts: directions, and the weight of color."""

import numpy as np
import pytest

from models.ranker import head


@pytest.mark.parametrize("images", [5, 60])
@pytest.mark.parametrize("dimensions", [20, 24])
def test_directions_keep_dot_products(images, dimensions):
    random = np.random.default_rng(0)
    x = random.normal(size=(images, 20)).astype(np.float32)
    kernel = head.directions(x, dimensions, random)
    assert kernel.shape == (20, dimensions) and kernel.dtype == np.float32
    np.testing.assert_allclose(x @ kernel @ kernel.T @ x.T, x @ x.T, rtol=1e-4, atol=1e-3)
    # So are those of images that were not seen: nothing of 20 dimensions is lost.
    other = random.normal(size=(50, 20))
    np.testing.assert_allclose(other @ kernel @ kernel.T @ other.T, other @ other.T, atol=1e-3)


def test_fewer_directions_are_the_principal_ones_and_keep_lengths_on_average():
    random = np.random.default_rng(0)
    x = random.normal(size=(100, 30)) * np.array([10.0] * 5 + [0.1] * 25)
    kernel = head.directions(x, 5, random)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(5), atol=1e-5)
    assert np.abs(kernel[:5]).sum() > 20 * np.abs(kernel[5:]).sum()
    few = random.normal(size=(4, 30))  # the rest of 12 directions is random
    kernel = head.directions(few, 12, random)
    other = random.normal(size=(20000, 30))
    kept = ((other @ kernel) ** 2).sum(1).mean() / (other**2).sum(1).mean()
    np.testing.assert_allclose(kept, 1, atol=0.02)


@pytest.mark.parametrize(
    "informative, weights", [("features", {0.0, 0.25}), ("colors", {1.0, 1.4})]
)
def test_the_weight_of_color_follows_what_finds_products(informative, weights):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 3)
    good = random.normal(size=(40, 16))[labels] + 0.8 * random.normal(size=(120, 16))
    noise = random.normal(size=(120, 16))
    parts = [good, noise] if informative == "features" else [noise, good]
    start = head.fit(
        np.concatenate(parts, 1).astype(np.float32),
        16,
        np.arange(120) < 100,
        labels,
        np.zeros(120, bool),
        dimensions=8,
    )
    assert start.weight in weights and start.kernel.shape == (32, 8)
    np.testing.assert_allclose(start.mean, np.concatenate(parts, 1)[:100].mean(0), atol=1e-5)
