"""Exact and approximate search with FAISS."""

import numpy as np
import pytest

from retrieval.catalogue import neighbours


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_nearest_by_blocks(similarity, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    random = np.random.default_rng(6)
    points = random.normal(size=(50, 5)).astype(np.float32)
    scores, rows = neighbours.nearest(points[:9], [points[:20], points[20:]], 12, similarity)
    for q in range(9):
        if similarity == "cosine":
            unit = points / np.linalg.norm(points, axis=1, keepdims=True)
            expected = unit @ unit[q]
        else:
            expected = -np.linalg.norm(points - points[q], axis=1)
        order = np.argsort(-expected, kind="stable")[:12]
        assert rows[q].tolist() == order.tolist()
        np.testing.assert_allclose(scores[q], expected[order], atol=1e-3)
