"""CUB-200-2011, as published."""

import pytest
from official import cub

from metriclearn import datasets


def test_cub(tmp_path):
    table = datasets.load("cub200", cub(tmp_path))
    assert table.splits.tolist() == ["train"] * 4 + ["test"] * 4  # species 1-100, 101-200
    assert table.products[2] == "100.Brown_Pelican" and table.categories[4] == "Pelican"
    assert table.boxes[0].tolist() == [1, 27, 31, 47]
    official = datasets.load("cub200", tmp_path, protocol="official")
    assert official.splits.tolist() == ["train", "test"] * 4
    with pytest.raises(ValueError, match="protocol must be"):
        datasets.load("cub200", tmp_path, protocol="mine")


def test_a_species_without_a_number(tmp_path):
    root = cub(tmp_path)
    for name in ("classes.txt", "image_class_labels.txt"):
        (root / name).write_text((root / name).read_text().replace("200", "x"))
    with pytest.raises(ValueError, match="image_class_labels.txt:7: 'x' is not all numbers"):
        datasets.load("cub200", root)
