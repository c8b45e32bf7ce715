"""Grocery Store, as published."""

from official import grocery

from metriclearn import datasets
from metriclearn.datasets import queries_and_catalogue


def test_grocery(tmp_path):
    table = datasets.load("grocery", grocery(tmp_path))
    assert len(table) == 14
    queries, catalogue = queries_and_catalogue(table, "test")
    assert len(queries) == 4 and set(catalogue.splits) == {"catalogue"}
    assert catalogue.products.tolist() == ["Golden-Delicious", "Oatly-Oat-Milk"]
    assert catalogue.column("coarse").tolist() == ["Apple", "Oat-Milk"]
    assert set(table.categories) == {"Fruit", "Packages"}
    inside = datasets.load("grocery", tmp_path / "dataset")
    assert inside.ids.tolist() == table.ids.tolist()
