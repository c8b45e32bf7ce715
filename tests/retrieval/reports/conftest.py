"""A small search to report."""

import dataclasses

import numpy as np
import pytest

from retrieval.embeddings import store
from retrieval.evaluation.figures import Files


@pytest.fixture
def circle():
    """Queries at angles on a circle, and a catalogue of four products, one image each."""
    turn = np.radians([0, 90, 180, 270])
    points = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    products = np.array([*"abcd"])
    catalogue = store.Embedded(points, np.array([*"1234"]), products, np.full(4, ""))
    turn = np.radians([1, 2, 89, 130, 181, 200])
    points = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    labels = np.array(["a", "d", "b", "b", "a", "a"])
    queries = store.Embedded(points, np.array([f"q{n}" for n in range(6)]), labels, np.full(6, ""))
    return queries, catalogue


@pytest.fixture
def stored():
    """Completes an evaluation as one of files."""

    def complete(result):
        source = Files(queries="q.npy", catalogue=None, made_by=[])
        return dataclasses.replace(
            result, figures=dataclasses.replace(result.figures, source=source)
        )

    return complete
