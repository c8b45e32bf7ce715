"""Cars196, as published."""

import numpy as np
import pytest
from official import cars
from scipy.io import loadmat, savemat

from metriclearn import datasets


def test_cars(tmp_path):
    table = datasets.load("cars196", cars(tmp_path))
    assert table.products.tolist()[:2] == ["Maker0 Model 1 2012", "Maker9 Model 98 2012"]
    assert table.splits.tolist() == ["train", "train", "test", "test"]
    assert table.categories[3] == "Maker19"
    assert table.boxes[0].tolist() == [5, 6, 20, 25]  # one-based inclusive -> zero-based exclusive
    official = datasets.load("cars196", tmp_path, protocol="official")
    assert official.splits.tolist() == ["test", "train", "test", "train"]


def test_a_foreign_mat_file(tmp_path):
    root = cars(tmp_path)
    content = loadmat(root / "cars_annos.mat")
    content["annotations"]["bbox_x2"][0, 0] = np.nan
    savemat(root / "cars_annos.mat", {k: content[k] for k in ("annotations", "class_names")})
    with pytest.raises(ValueError, match="cars_annos.mat: not the official .*NaN"):
        datasets.load("cars196", root)
    savemat(root / "cars_annos.mat", {"annotations": np.zeros(3)})
    with pytest.raises(ValueError, match="not the official annotation"):
        datasets.load("cars196", tmp_path)
    (tmp_path / "cars_annos.mat").write_text("<html>")
    with pytest.raises(ValueError, match="not the official annotation"):
        datasets.load("cars196", tmp_path)
