"""DeepFashion's two benchmarks, as published."""

import pytest
from official import C2S, consumer_to_shop, in_shop, row

from metriclearn import datasets
from metriclearn.datasets import queries_and_catalogue


def test_consumer_to_shop(tmp_path):
    table = datasets.load("deepfashion_c2s", consumer_to_shop(tmp_path))
    assert len(table) == 9 and set(table.categories) == {"DRESSES/Skirt"}
    queries, catalogue = queries_and_catalogue(table, "test")
    assert queries.ids.tolist() == [C2S.format(3, "comsumer", n) for n in (1, 2)]
    assert catalogue.ids.tolist() == [C2S.format(3, "shop", 1)]
    assert set(queries.domains) == {"consumer"} and set(catalogue.domains) == {"shop"}
    assert row(table, C2S.format(1, "comsumer", 1)).boxes.tolist() == [[0, 1, 20, 25]]
    assert row(table, C2S.format(1, "comsumer", 2)).boxes.tolist() == [[3, 4, 20, 25]]
    assert set(table.where(split="train").roles) == {"train"}


def test_in_shop(tmp_path):
    table = datasets.load("in_shop", in_shop(tmp_path))
    assert table.categories.tolist() == ["WOMEN/Dresses"] * 2 + ["MEN/Denim"] * 2
    assert table.roles.tolist() == ["train", "train", "query", "catalogue"]
    assert table.boxes[0].tolist() == [50, 49, 208, 248]


def test_a_picture_in_two_pairs_of_different_products(tmp_path):
    path = consumer_to_shop(tmp_path) / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(C2S.format(3, "shop", 1), C2S.format(2, "shop", 1)))
    with pytest.raises(ValueError, match=r"txt:7: .*shop_01.jpg is id_00003953 test shop here and"):
        datasets.load("deepfashion_c2s", tmp_path)
