"""What the report's script explores."""

import sys
import types

import numpy as np
import pytest

from retrieval.embeddings import store
from retrieval.evaluation.figures import evaluate
from retrieval.reports import explorer, page, selection


def explored(queries, catalogue, similarity="cosine", images=({}, {})):
    result = evaluate(queries, catalogue, similarity=similarity)
    chosen = selection.choose(queries, catalogue, result)
    return explorer.data_of(queries, catalogue, result, chosen, *images)


def test_rows_hold_results_and_the_answer(circle, monkeypatch):
    monkeypatch.setattr(selection, "SHOWN", 1)
    data = explored(*circle, images=({"q1": 7}, {"1": 8}))
    assert data["query_rows"] == [0, 1, 2, 3, 4, 5]
    assert data["items"][0] == ["1", "a", "", 8] and data["items"][1][3] == -1
    place = {item[0]: n for n, item in enumerate(data["items"])}
    # q1, of d, finds a (2 degrees off); its own item is 92 degrees off, at rank 3.
    name, product, category, image, rank, results, answer = data["queries"][1]
    assert (name, product, category, image, rank) == ("q1", "d", "", 7, 3)
    assert results == [[place["1"], pytest.approx(np.cos(np.radians(2)), abs=1e-5), 0]]
    assert answer == [place["4"], pytest.approx(np.cos(np.radians(92)), abs=1e-5)]
    assert data["queries"][0][5][0][2] == 1 and data["queries"][0][6] == 0


def test_distances_are_positive(circle):
    data = explored(*circle, "euclidean")
    assert all(score >= 0 for query in data["queries"] for _, score, _ in query[5])


@pytest.mark.parametrize("limit", ["LISTED", "MOST_IMAGES"])
def test_the_list_is_limited(clustered_items, monkeypatch, limit):
    monkeypatch.setattr(selection, limit, 60)
    items = clustered_items
    result = evaluate(items)
    chosen = selection.choose(items, items, result)
    assert chosen.listed == sorted(set(chosen.listed)) and 0 < len(chosen.listed) <= 60
    if limit == "MOST_IMAGES":
        results = result.rows[chosen.listed, : selection.SHOWN]
        assert len(chosen.listed) + len(set(results.ravel().tolist())) <= 60
    assert chosen.listed == selection.choose(items, items, result).listed  # the same each time


@pytest.fixture
def clustered_items():
    random = np.random.default_rng(1)
    labels = np.arange(90) % 15
    points = random.normal(size=(15, 5))[labels] + 0.1 * random.normal(size=(90, 5))
    names = np.array([f"i{n}" for n in range(90)])
    return store.Embedded(points, names, labels.astype(str), np.where(labels % 3, "", "k<"))


def test_the_map_is_the_principal_plane(clustered_items):
    items = clustered_items
    data = explored(items, items, "dot")
    plane = explorer.map_of(items, items, data, "dot")
    assert len(plane.points) == len(data["queries"]) + len(data["items"])
    rows = np.array(data["query_rows"] + data["item_rows"])
    centered = items.embeddings - items.embeddings.mean(0)
    values, axes = np.linalg.eigh(centered.T @ centered)
    expected = centered[rows] @ axes[:, [-1, -2]]
    found = np.array([point[:2] for point in plane.points])
    for axis in (0, 1):  # up to its sign and scale, and the tenth of a unit that is written
        correlation = np.corrcoef(expected[:, axis], found[:, axis])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-3)
    share = 100 * values[-2:].sum() / values.sum()
    assert f"{share:.0f}% of the variance" in plane.method
    low, high = found.min(0), found.max(0)
    assert (low >= 0).all() and (high <= (plane.width, plane.height)).all()
    # One category only: colors are right and wrong first results instead.
    assert plane.keys[0].startswith("query, first result") and {p[2] for p in plane.points} >= {6}


def test_colors_are_the_most_frequent_categories(circle, monkeypatch):
    queries, catalogue = circle
    kinds = np.array(["x", "y", "x", "z", "x", "y"])
    queries = store.Embedded(queries.embeddings, queries.ids, queries.products, kinds)
    monkeypatch.setattr(explorer, "COLORS", 2)
    data = explored(queries, catalogue)
    plane = explorer.map_of(queries, catalogue, data, "cosine")
    assert plane.keys == ["x", "y"]
    assert [point[2] for point in plane.points] == [0, 1, 0, 2, 0, 1] + [2] * 4
    shown = page.ENVIRONMENT.get_template("chart.html").module.scatter(plane)
    assert shown.count("<circle") == 6 and shown.count("<path") == 4
    assert 'data-at="q 5"' in shown and 'data-at="i 3"' in shown


def test_umap_is_taken_if_it_is_installed(clustered_items, monkeypatch):
    class UMAP:
        def __init__(self, random_state, n_jobs):
            assert random_state == 0

        def fit_transform(self, points):
            return points[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    data = explored(clustered_items, clustered_items)
    plane = explorer.map_of(clustered_items, clustered_items, data, "cosine")
    assert plane.method.startswith("UMAP")


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_map_of_few_points_or_dimensions(circle, dimensions):
    queries, catalogue = circle
    pair = [
        store.Embedded(
            each.embeddings[:, :dimensions] + 2, each.ids, each.products, each.categories
        )
        for each in circle
    ]
    plane = explorer.map_of(*pair, explored(*pair), "cosine")
    assert np.isfinite([point[:2] for point in plane.points]).all()
    one = [store.Embedded(*(getattr(each, n)[:1] for n in
           ("embeddings", "ids", "products", "categories"))) for each in pair]  # fmt: skip
    assert explorer.map_of(*one, explored(*one), "cosine") is None
