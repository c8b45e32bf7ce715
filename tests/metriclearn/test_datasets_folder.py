"""Folders of images: products, splits and roles by their folders."""

import os

import pytest
from official import lay

from metriclearn import datasets
from metriclearn.datasets import pipeline


def test_folder_per_class(tmp_path):
    root = lay(
        tmp_path,
        ["a/1.jpg", "a/deep/2.JPEG", "b/1.png", "c/1.jpg", ".hid/1.jpg"],
        {"a/notes.txt": "", "readme.md": ""},
    )
    table = datasets.load("folder", root)
    assert table.ids.tolist() == ["a/1.jpg", "a/deep/2.JPEG", "b/1.png", "c/1.jpg"]
    assert table.products.tolist() == ["a", "a", "b", "c"]
    assert set(table.splits) == {"train", "val", "test"}
    assert not pipeline.unreadable_images(table).size
    (root / "d").mkdir()
    with pytest.raises(ValueError, match="d: no image"):
        datasets.load("folder", root)


def test_folder_with_splits_and_roles(tmp_path):
    root = lay(tmp_path, ["train/a/1.jpg", "query/b/1.jpg", "gallery/b/2.jpg"], {})
    table = datasets.load("folder", root)
    assert sorted(zip(table.ids, table.splits, table.roles, strict=True)) == [
        ("gallery/b/2.jpg", "test", "catalogue"),
        ("query/b/1.jpg", "test", "query"),
        ("train/a/1.jpg", "train", "train"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no image"):
        datasets.load("folder", tmp_path / "empty")
    with pytest.raises(ValueError, match="there is no such folder"):
        datasets.load("folder", tmp_path / "none")


def test_a_folder_beside_those_of_the_splits(tmp_path):
    root = lay(tmp_path, ["train/hat/1.jpg", "test/hat/2.jpg", "notes/1.jpg"], {})
    with pytest.raises(
        ValueError, match="folder 'test' of a split, and 'notes', which is not one of train"
    ):
        datasets.load("folder", root)


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("Train", "VAL", "Test"),
        ("training", "validation", "testing"),
        ("Train_Set", "eval", "test images"),
        ("bounding_box_train", "Dev-Split", "bounding_box_test"),
    ],
)
def test_folders_of_splits_in_any_case_and_by_their_synonyms(tmp_path, train, val, test):
    root = lay(tmp_path, [f"{train}/a/1.jpg", f"{val}/b/1.jpg", f"{test}/b/2.jpg"], {})
    table = datasets.load("folder", root)
    found = dict(zip(table.ids.tolist(), table.splits.tolist(), strict=True))
    assert found == {
        f"{train}/a/1.jpg": "train",
        f"{val}/b/1.jpg": "val",
        f"{test}/b/2.jpg": "test",
    }
    assert set(table.products) == {"a", "b"}
    lay(tmp_path, ["shoes/1.jpg"], {})
    with pytest.raises(ValueError, match="of a split, and 'shoes'"):
        datasets.load("folder", root)


def test_a_product_may_be_called_as_a_split(tmp_path):
    root = lay(tmp_path, ["test/1.jpg", "hat/1.jpg", "shoe/1.jpg"], {})
    assert set(datasets.load("folder", root).products) == {"hat", "shoe", "test"}


def test_loose_images_links_and_odd_names(tmp_path):
    root = lay(tmp_path / "root", ["a/1.jpg", "b/c/2.jpg", "3.jpg"], {".hidden.jpg": ""})
    elsewhere = lay(tmp_path / "elsewhere", ["d/4.jpg"], {})
    (root / "linked").symlink_to(elsewhere / "d")
    (root / "a" / "5.jpg").symlink_to(elsewhere / "d" / "4.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")
    table = datasets.load("folder", root)
    assert dict(zip(table.ids.tolist(), table.products.tolist(), strict=True)) == {
        "a/1.jpg": "a", "a/5.jpg": "a", "b/c/2.jpg": "b", "linked/4.jpg": "linked",
        "3.jpg": "3.jpg",
    }  # fmt: skip
    one = datasets.load("folder", root / "3.jpg", fractions=None)
    assert one.ids.tolist() == ["3.jpg"] and one.splits.tolist() == [""]
    (root / "a" / "up").symlink_to(root / "a")
    with pytest.raises(ValueError, match="a/up: is a link to a folder that contains it"):
        datasets.load("folder", root)
    (root / "a" / "up").unlink()
    open(os.fsencode(root / "a" / "odd") + b"\xff.jpg", "wb").close()
    with pytest.raises(ValueError, match=r"odd.udcff\.jpg' is not UTF-8; rename"):
        datasets.load("folder", root)
