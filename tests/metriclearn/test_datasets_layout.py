"""What the readers of published data sets share: a checked layout, named faults."""

import shutil

import pytest
from official import MAKERS

from metriclearn import datasets
from metriclearn.datasets import pipeline, queries_and_catalogue


@pytest.mark.parametrize("name", MAKERS)
def test_reads_the_official_layout_and_its_pictures_decode(name, tmp_path):
    table = datasets.load(name, MAKERS[name](tmp_path))
    assert {"train", "test"} <= set(table.splits)
    assert (table.categories != "").all()
    assert not pipeline.unreadable_images(table).size
    queries, catalogue = queries_and_catalogue(table, "test")
    assert len(queries) and len(catalogue)


@pytest.mark.parametrize(
    ("name", "gone", "page"),
    [
        ("sop", ["Ebay_test.txt"], "lifted_struct"),
        ("deepfashion_c2s", ["Anno/list_bbox_consumer2shop.txt"], "DeepFashion"),
        ("in_shop", ["Eval/list_eval_partition.txt", "Img"], "DeepFashion"),
        ("cub200", ["classes.txt", "images"], "cub_200_2011"),
        ("cars196", ["cars_annos.mat"], "car_dataset"),
        ("grocery", ["dataset/val.txt"], "GroceryStoreDataset"),
    ],
)
def test_what_is_missing_is_named_with_the_official_page(name, gone, page, tmp_path):
    root = MAKERS[name](tmp_path)
    for path in gone:
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    with pytest.raises(ValueError, match=page) as error:
        datasets.load(name, root)
    for path in gone:
        assert path.removeprefix("dataset/").replace("Img", "Img/img") in str(error.value)


@pytest.mark.parametrize("name", MAKERS)
def test_a_picture_that_is_not_there_is_named(name, tmp_path):
    root = MAKERS[name](tmp_path)
    victim = datasets.load(name, root).paths[1]
    (tmp_path / victim).unlink()
    with pytest.raises(ValueError, match="1 of .* images do not exist, the first is") as error:
        datasets.load(name, root)
    assert victim in str(error.value)
    assert len(datasets.load(name, root, check_files=False))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("sop", "Ebay_train.txt", "super_class_id path", "path", ":1: the header must be"),
        ("sop", "Ebay_train.txt", "2 1 1 ", "2 1 ", ":3: 3 cells instead of 4"),
        (
            "in_shop",
            "Eval/list_eval_partition.txt",
            "4\n",
            "5\n",
            "4 rows, but its first line",
        ),
        ("in_shop", "Eval/list_eval_partition.txt", "4\n", "x\n", ":1: the first line must be"),
        (
            "in_shop",
            "Eval/list_eval_partition.txt",
            " gallery",
            " shop",
            ":6: .* 'shop' is not one of",
        ),
        ("in_shop", "Anno/list_bbox_inshop.txt", "  208", "  x", "is not all numbers"),
        (
            "deepfashion_c2s",
            "Eval/list_eval_partition.txt",
            "2 val\n",
            "2 tset\n",
            "'tset' is not one of",
        ),
        ("deepfashion_c2s", "Anno/list_bbox_consumer2shop.txt", "comsumer_01", "c_1", "no box for"),
        ("cub200", "classes.txt", "200 200.", "201 200.", ":7: the class 200 is not in classes"),
        ("cub200", "bounding_boxes.txt", "3 3.0", "9 3.0", "the image 3 is in this list or"),
        ("cub200", "images.txt", "2 001", "1 001", ":2: the id 1 is there twice"),
        ("cub200", "bounding_boxes.txt", " 27.0 ", " 1e9999 ", ":1: .* is not all numbers of 32"),
        ("cub200", "bounding_boxes.txt", " 27.0 ", " 3e9 ", ":1: .* is not all numbers of 32"),
        ("cub200", "train_test_split.txt", "1 1\n", "1 2\n", ":1: '2' is neither 0 .* nor 1"),
        (
            "grocery",
            "dataset/test.txt",
            "test/Packages/Oat-Milk/Oatly-Oat-Milk/",
            "",
            ":3: .* is not in the folder",
        ),
        ("grocery", "dataset/test.txt", "jpg, 1, 1", "jpg, 7, 1", ":3: the class 7 is not in"),
        ("grocery", "dataset/classes.csv", "Class ID (int),", "ID,", ":1: no column 'Class ID"),
    ],
)
def test_damage_is_named_with_file_and_line(name, file, old, new, message, tmp_path):
    path = MAKERS[name](tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        datasets.load(name, tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("cub200", "images"), ("cars196", "car_ims"), ("deepfashion_c2s", "img"), ("in_shop", "Img")],
)
def test_lists_can_be_read_without_their_pictures(name, pictures, tmp_path):
    root = MAKERS[name](tmp_path)
    count = len(datasets.load(name, root))
    shutil.rmtree(root / pictures)
    assert len(datasets.load(name, root, check_files=False)) == count


@pytest.mark.parametrize(
    ("name", "file"), [("sop", "Ebay_train.txt"), ("grocery", "dataset/classes.csv")]
)
def test_a_list_that_is_no_text_is_named(name, file, tmp_path):
    path = MAKERS[name](tmp_path) / file
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as some editors save it
    assert len(datasets.load(name, tmp_path))
    path.write_bytes(path.read_bytes() + b"\xe9")
    with pytest.raises(ValueError, match=f"{file}: not UTF-8"):
        datasets.load(name, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=f"{file}: cannot be read: Is a directory"):
        datasets.load(name, tmp_path)


def test_registry():
    with pytest.raises(ValueError, match=r"no data set 'cub'.*did you mean 'cub200'"):
        datasets.load("cub")
    with pytest.raises(ValueError, match="sop: give the folder"):
        datasets.load("sop")
