"""A catalogue of clustered products."""

import numpy as np
import pytest

from retrieval.catalogue import neighbours
from retrieval.embeddings import store
from retrieval.evaluation import figures


@pytest.fixture(scope="session")
def clustered():
    """Items of clustered products, and their evaluation."""
    random = np.random.default_rng(8)
    labels = np.repeat(np.arange(40), 6)
    points = random.normal(size=(40, 12))[labels] + 0.9 * random.normal(size=(240, 12))
    points = neighbours.prepare(points, "cosine")
    names = np.array([f"i{n}" for n in range(240)])
    images = random.integers(0, 256, (240, 4, 4, 3)).astype(np.uint8)
    categories = np.where(labels % 2, "odd", "even")
    items = store.Embedded(points, names, labels.astype(str), categories, images)
    return items, figures.evaluate(items)
