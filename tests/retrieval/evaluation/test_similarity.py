"""Similarity of images of one product and of others."""

import numpy as np

from retrieval.embeddings import store
from retrieval.evaluation import similarity


def test_histogram_of_a_collapsed_embedding():
    names = np.array(["1", "2", "3", "4"])
    items = store.Embedded(np.ones((4, 2), np.float32), names, np.array([*"ppqq"]), names)
    found = similarity.histogram(items, items, "cosine")
    edges = found["edges"]
    assert edges[0] < 1 < edges[-1] and edges == sorted(set(edges))
