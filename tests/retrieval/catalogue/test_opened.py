"""A catalogue that is searched: by vector, by item, within a category, per product."""

import dataclasses

import numpy as np
import pytest
from stores import items, numbers, write_store

from retrieval.catalogue import index
from retrieval.catalogue.opened import Catalogue


@pytest.fixture
def unit(points):
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def built(tmp_path, points, factory="Flat", **options):
    source = write_store(tmp_path / "s", [items(points)])
    index.build(source, tmp_path / "i", factory, recall=0.99, **options)
    return Catalogue.open(tmp_path / "i")


def ranked(unit, query, keep=None):
    """Rows by similarity to a query [D], best first, of those in a mask."""
    scores = unit @ query
    order = np.argsort(-scores, kind="stable")
    return [row for row in order.tolist() if keep is None or keep[row]]


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_items_find_the_items_like_them(tmp_path, points, unit, factory):
    catalogue = built(tmp_path, points, factory)
    names = items(points).ids
    rows = [7, 300]
    found = catalogue.find_like(names[rows], 5)
    places = numbers(catalogue, found)
    for row, place in zip(rows, places.tolist(), strict=True):
        expected = [r for r in ranked(unit, unit[row]) if r != row][:5]
        assert row not in place and place == expected
    odd = catalogue.find_like(names[[7]], 3, "odd")
    expected = [r for r in ranked(unit, unit[7], np.arange(600) % 2 == 1) if r != 7][:3]
    assert numbers(catalogue, odd)[0].tolist() == expected


def test_an_item_of_one_bit_codes_cannot_be_searched_with(tmp_path, points):
    catalogue = built(tmp_path, points, "IVF4,RaBitQ")
    with pytest.raises(ValueError, match="kind IVF4,RaBitQ cannot return the vector of an item"):
        catalogue.find_like([items(points).ids[0]], 3)


def test_the_best_item_of_each_product(tmp_path, points, unit):
    """Even where the nearest items are all of one product, of which there are many."""
    rows = items(points)
    products = np.where(np.arange(600) < 550, "many", [f"p{n // 2}" for n in range(600)])
    rows = dataclasses.replace(rows, products=products)
    points[:550] = points[0] + 0.01 * points[:550]
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    rows = dataclasses.replace(rows, embeddings=points)
    index.build(write_store(tmp_path / "s", [rows]), tmp_path / "i", "Flat")
    catalogue = Catalogue.open(tmp_path / "i")
    found = catalogue.find(points[[0, 599]], 4, by_product=True)
    for query, line in zip((0, 599), catalogue.results(found), strict=True):
        expected = {}
        for row in ranked(unit, unit[query]):
            expected.setdefault(products[row], rows.ids[row])
        assert {item["product"]: item["id"] for item in line} == dict(list(expected.items())[:4])
    assert (catalogue.find(points[:1], 600, by_product=True).rows >= 0).sum() == 26


def test_a_threshold_keeps_what_reaches_it(tmp_path, points, unit):
    catalogue = built(tmp_path, points)
    scores = np.sort(unit[3] @ unit.T)[::-1]
    threshold = float((scores[4] + scores[5]) / 2)
    found = catalogue.find(points[[3]], 10, threshold=threshold)
    assert (found.rows[0] >= 0).sum() == 5 and (found.scores[0, :5] >= threshold).all()
    assert np.isneginf(found.scores[0, 5:]).all()
    assert catalogue.results(catalogue.find(points[[3]], 10, threshold=2.0)) == [[]]
    some = catalogue.find(points[[3]], 10, threshold=threshold, by_product=True)
    assert (some.scores[0, (some.rows >= 0)[0]] >= threshold).all()


def test_results_are_json_values_of_items_in_use(tmp_path, points):
    catalogue = built(tmp_path, points)
    names = items(points).ids
    first = catalogue.results(catalogue.find(points[[3]], 2))[0][0]
    assert first.pop("score") == pytest.approx(1, abs=1e-6)
    assert first == {
        "rank": 1, "id": names[3], "product": "p1", "category": "odd", "path": ""
    }  # fmt: skip
    assert catalogue.row_of(names[3]) == catalogue.find(points[[3]], 1).rows[0, 0]
    assert catalogue.categories() == ["even", "odd"]
    index.remove([names[3]], tmp_path / "i")
    with Catalogue.open(tmp_path / "i") as smaller:
        with pytest.raises(ValueError, match="no item of the index has the id 'i0003"):
            smaller.find_like([names[3]])
        # Removed and added again under its name: the new one is found.
        index.add(write_store(tmp_path / "m", [items(points[9:10], start=3)]), tmp_path / "i")
    with Catalogue.open(tmp_path / "i") as again:
        row = again.find(points[[9]], 2).rows[0]
        assert again.row_of(names[3]) in row.tolist()


def test_a_category_that_is_misspelled_names_the_nearest(tmp_path, points):
    catalogue = built(tmp_path, points)
    with pytest.raises(ValueError, match=r"of category 'evn'\. Did you mean 'even'\?$"):
        catalogue.find(points[:1], 1, "evn")
    with pytest.raises(ValueError, match=r"of category 'shoes'\. It has even, odd\.$"):
        catalogue.find(points[:1], 1, "shoes")
    with pytest.raises(ValueError, match=r"queries are \[1, 3\]; the index takes \[rows, 16\]"):
        catalogue.find(points[:1, :3], 1)
