"""Saying "no match" below a score."""

import types

import numpy as np
import pytest

from retrieval.embeddings import store
from retrieval.evaluation import rejection


def of(scores, right, similarity="cosine"):
    """The rejection of queries whose first results score so; 'x' is in no catalogue."""
    names = np.array([f"q{n}" for n in range(len(right))])
    queries = store.Embedded(np.ones((len(right), 2)), names, np.where(right, "p", "x"), names)
    item = np.array(["p"])
    catalogue = store.Embedded(np.ones((1, 2)), item, item, item)
    result = types.SimpleNamespace(
        rows=np.zeros((len(right), 1), int),
        scores=np.array(scores, float)[:, None],
        figures=types.SimpleNamespace(similarity=similarity),
    )
    return rejection.of(queries, catalogue, result)


def test_thresholds_by_hand():
    # Best first: right, right, wrong, right, wrong (of which one query has no answer at all).
    found = of([0.9, 0.5, 0.6, 0.8, 0.2], [True, True, False, True, False])
    assert found.scores == [0.2, 0.5, 0.6, 0.8, 0.9]
    assert found.shown == [1, 0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose(found.shown_precision, [3 / 5, 3 / 4, 2 / 3, 1, 1])
    np.testing.assert_allclose(found.shown_recall, [1, 1, 2 / 3, 2 / 3, 1 / 3])
    np.testing.assert_allclose(found.rejected_precision, [1, 1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(found.rejected_recall, [0, 1 / 2, 1 / 2, 1, 1])
    assert found.scores[found.keeps] == 0.8  # the most lenient of 95%


def test_distances_are_positive_and_shown_up_to_a_threshold():
    found = of([-1.0, -3.0], [True, False], "euclidean")
    assert found.scores == [3, 1] and found.shown == [1, 0.5] and found.keeps == 1


def test_no_threshold_may_keep_the_precision():
    found = of([0.3, 0.4], [False, False])
    assert found.keeps is None and found.shown_recall == [0, 0]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_threshold_still_shows_the_result_that_it_was_made_of(scale):
    random = np.random.default_rng(0)
    scores, right = scale * random.normal(size=3000), random.random(3000) < 0.7
    right |= scores > 2 * scale
    found = of(scores, right, "dot")
    assert len(found.scores) <= rejection.STEPS + 1
    for threshold, shown, precision in zip(
        found.scores, found.shown, found.shown_precision, strict=True
    ):
        passing = scores >= threshold
        assert shown == pytest.approx(passing.mean())
        assert precision == pytest.approx(right[passing].mean())
