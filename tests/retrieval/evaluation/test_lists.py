"""Lists of neighbors, in the order of the ranks."""

import numpy as np
import pytest

from retrieval import metrics
from retrieval.embeddings import store
from retrieval.evaluation import figures, lists


@pytest.mark.parametrize("own_set", [False, True])
@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_lists_are_in_the_order_of_the_ranks(similarity, own_set):
    """Also where items tie: what is listed first is what the figures count as first."""
    random = np.random.default_rng(4)
    points = random.normal(size=(60, 8)).astype(np.float32)
    names = np.array([f"c{n:03d}" for n in random.permutation(300)])
    labels = random.integers(0, 20, 300).astype(str)
    items = store.Embedded(points[random.integers(0, 60, 300)], names, labels, names)
    queries = store.Embedded(points[:50], names[:50] + "q", labels[-50:], names[:50])
    queries = items if own_set else queries
    result = figures.evaluate(queries, None if own_set else items, similarity=similarity)
    right = (labels[result.rows] == queries.products[:, None]) & (result.rows >= 0)
    listed = np.where(right.any(1), right.argmax(1) + 1, 0)
    first = result.ranking.first
    np.testing.assert_array_equal(listed, np.where(first <= 20, first, 0))


@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_lists_of_items_a_hair_apart_are_ordered_exactly(similarity):
    """Only near neighbours are scored once more: the order is that of scoring all of them."""
    random = np.random.default_rng(8)
    base, names = random.normal(size=(1, 30)), np.array([f"i{n:03d}" for n in range(400)])
    apart = 10.0 ** -random.uniform(5, 7, (400, 1))
    points = (base + apart * random.normal(size=(400, 30))).astype(np.float32)
    asking = (base + random.normal(size=(50, 30))).astype(np.float32)
    items, queries = (store.Embedded(e, names[: len(e)], names, names) for e in (points, asking))
    scores, rows = lists.nearest(asking, points, 41, similarity)
    found = lists.in_order(scores, rows, queries, items, similarity, 21)[1][:, :21]
    q, c = asking.astype(np.longdouble)[:, None], points.astype(np.longdouble)[rows]
    exact = -np.square(q - c).sum(2) if similarity == "euclidean" else (q * c).sum(2)
    if similarity == "cosine":
        exact /= np.sqrt(np.square(c).sum(2))
    order = np.lexsort((rows, -exact))[:, :21]  # ids are in the order of rows
    np.testing.assert_array_equal(found, np.take_along_axis(rows, order, 1))
    assert (found != rows[:, :21]).any()


def test_lists_of_rows_nearly_of_unit_length_are_in_the_order_of_the_ranks():
    """The nearer one by angle is shorter: the dot product alone would order them wrongly."""
    angles, lengths = np.array([0.45, 0.45 - 1e-6]), np.array([1 + 1.9e-6, 1 - 1.9e-6])
    points = np.zeros((2, 4), np.float32)
    points[:, :2] = (np.stack([np.cos(angles), np.sin(angles)]) * lengths).T
    names = np.array(["a", "b"])
    items = store.Embedded(points, names, names, names)
    queries = store.Embedded(np.eye(1, 4, dtype=np.float32), names[:1], names[:1], names[:1])
    assert points[0, 0] > points[1, 0]
    scores, rows = lists.nearest(queries.embeddings, points, 2)
    ranking = metrics.rank_queries(queries.embeddings, names[:1], points, names)
    assert ranking.first.tolist() == [2]
    assert lists.in_order(scores, rows, queries, items, "cosine", 2)[1].tolist() == [[1, 0]]


def test_without_removes_every_image_that_is_the_query():
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, -np.inf]])
    rows = np.array([[4, 2, 0, 1], [3, 4, 1, -1]])
    itself = np.array([[True, False, True, False], [False] * 4])
    found = lists.without(scores, rows, itself, 3)
    assert found[1].tolist() == [[2, 1, -1], [3, 4, 1]]
    assert found[0].tolist() == [[0.8, 0.6, -np.inf], [0.9, 0.8, 0.7]]


def test_first_right_counts_places_without_the_query():
    right = np.array([[True, False, True], [False, False, False]])
    itself = np.array([[True, False, False], [False, False, False]])
    assert lists.first_right(right, itself).tolist() == [2, np.inf]
