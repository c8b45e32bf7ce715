"""Stanford Online Products, as published."""

from official import sop

from metriclearn import datasets


def test_sop(tmp_path):
    table = datasets.load("sop", sop(tmp_path))
    assert table.ids[0] == "bicycle_final/111085122871_0.JPG"
    assert table.products.tolist() == ["1", "1", "11319", "11319", "11320"]
    assert table.categories.tolist() == ["bicycle"] * 2 + ["coffee_maker"] * 2 + ["sofa"]
    assert table.splits.tolist() == ["train"] * 2 + ["test"] * 3
