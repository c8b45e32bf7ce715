"""Readers of published data sets, on small folders of their exact layout with real JPEGs."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from metriclearn import datasets
from metriclearn.datasets import pipeline, queries_and_catalogue


def lay(root, pictures, texts):
    """Writes JPEGs (each of its own colour) and text files."""
    for i, name in enumerate(pictures):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i * 20 % 256, 99, 200)).save(root / name, "JPEG")
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def sop(root):
    header = "image_id class_id super_class_id path\n"
    train = ["bicycle_final/111085122871_0.JPG", "bicycle_final/111085122871_1.JPG"]
    test = ["coffee_maker_final/1_0.JPG", "coffee_maker_final/1_1.JPG", "sofa_final/2_0.JPG"]
    return lay(
        root,
        train + test,
        {
            "Ebay_train.txt": header + f"1 1 1 {train[0]}\n2 1 1 {train[1]}\n",
            "Ebay_test.txt": header
            + f"3 11319 4 {test[0]}\n4 11319 4 {test[1]}\n5 11320 11 {test[2]}\n",
        },
    )


# The official lists do spell it 'comsumer'.
C2S = "img/DRESSES/Skirt/id_0000395{}/{}_0{}.jpg"


def consumer_to_shop(root):
    pictures = [
        C2S.format(i, who, n)
        for i in (1, 2, 3)
        for who, n in (("comsumer", 1), ("comsumer", 2), ("shop", 1))
    ]
    boxes = [
        f"{p} 2 {1 if 'shop' in p else 2} {i} {i + 1} {i + 20} {i + 25}"
        for i, p in enumerate(pictures)
    ]
    boxes[1] = f"{pictures[1]} 2 2 20 25 3 4"  # corners swapped, as some are
    status = {1: "train", 2: "val", 3: "test"}
    pairs = [
        f"{C2S.format(i, 'comsumer', n)} {C2S.format(i, 'shop', 1)} id_0000395{i} {status[i]}"
        for i in (1, 2, 3)
        for n in (1, 2)
    ]
    return lay(
        root,
        pictures,
        {
            "Anno/list_bbox_consumer2shop.txt": "9\n"
            "image_name clothes_type source_type x_1 y_1 x_2 y_2\n" + "\n".join(boxes) + "\n",
            "Eval/list_eval_partition.txt": "6\n"
            "image_pair_name_1        image_pair_name_2   item_id evaluation_status\n"
            + "\n".join(pairs)
            + "\n",
        },
    )


def in_shop(root):
    rows = [
        ("WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
        ("MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
        ("MEN/Denim/id_00000080/01_2_side.jpg", "id_00000080", "gallery"),
    ]
    boxes = "\n".join(f"img/{path}     1   2   50  49  208 248" for path, _, _ in rows)
    lines = "\n".join(f"img/{path}     {item} {status}" for path, item, status in rows)
    return lay(
        root,
        [f"Img/img/{path}" for path, _, _ in rows],
        {
            "Anno/list_bbox_inshop.txt": "4\n"
            "image_name clothes_type pose_type x_1 y_1 x_2 y_2\n" + boxes + "\n",
            "Eval/list_eval_partition.txt": f"4\nimage_name item_id evaluation_status\n{lines}\n",
        },
    )


CUB_CLASSES = {
    1: "001.Black_footed_Albatross",
    100: "100.Brown_Pelican",
    101: "101.White_Pelican",
    200: "200.Common_Yellowthroat",
}


def cub(root):
    names = [f"{name}/{name[4:]}_{i:04d}_{i}.jpg" for name in CUB_CLASSES.values() for i in (1, 2)]
    labels = [label for label in CUB_CLASSES for _ in (1, 2)]
    number = list(range(1, 9))
    return lay(
        root,
        [f"images/{name}" for name in names],
        {
            "images.txt": "".join(f"{i} {n}\n" for i, n in zip(number, names, strict=True)),
            "image_class_labels.txt": "".join(
                f"{i} {label}\n" for i, label in zip(number, labels, strict=True)
            ),
            "classes.txt": "".join(f"{i} {name}\n" for i, name in CUB_CLASSES.items()),
            "bounding_boxes.txt": "".join(f"{i} {i}.0 27.0 30.0 20.0\n" for i in number),
            "train_test_split.txt": "".join(f"{i} {i % 2}\n" for i in number),
        },
    )


def cars(root):
    rows = [
        (f"car_ims/00000{i}.jpg", 5 + i, 7, 20, 25, c, i % 2)
        for i, c in enumerate((1, 98, 99, 196), 1)
    ]
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    annotations = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for i, row in enumerate(rows):
        annotations[0, i] = row
    names = np.empty((1, 196), object)
    names[0] = [f"Maker{i // 10} Model {i + 1} 2012" for i in range(196)]
    lay(root, [row[0] for row in rows], {})
    savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": names})
    return root


def grocery(root):
    icon = "iconic-images-and-descriptions/{}_Iconic.jpg"
    classes = [
        ("Golden-Delicious", 0, "Apple", 0, "Fruit/Apple/Golden-Delicious/Golden-Delicious"),
        ("Oatly-Oat-Milk", 1, "Oat-Milk", 1, "Packages/Oat-Milk/Oatly-Oat-Milk/Oatly"),
    ]
    header = (
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
        "Iconic Image Path (str),Product Description Path (str)\n"
    )
    pictures = [
        f"{part}/{c[4]}_00{n}.jpg"
        for part in ("train", "val", "test")
        for c in classes
        for n in (1, 2)
    ]
    texts = {
        "dataset/classes.csv": header
        + "".join(
            f"{n},{i},{coarse},{j},/{icon.format(at)},/{at}_Description.txt\n"
            for n, i, coarse, j, at in classes
        )
    }
    for part in ("train", "val", "test"):
        texts[f"dataset/{part}.txt"] = "".join(
            f"{p}, {int('Oatly' in p)}, {int('Oatly' in p)}\n"
            for p in pictures
            if p.startswith(part)
        )
    pictures += [icon.format(c[4]) for c in classes]
    return lay(root, [f"dataset/{p}" for p in pictures], texts)


MAKERS = {
    "sop": sop,
    "deepfashion_c2s": consumer_to_shop,
    "in_shop": in_shop,
    "cub200": cub,
    "cars196": cars,
    "grocery": grocery,
}


@pytest.mark.parametrize("name", MAKERS)
def test_reads_the_official_layout_and_its_pictures_decode(name, tmp_path):
    table = datasets.load(name, MAKERS[name](tmp_path))
    assert {"train", "test"} <= set(table.splits)
    assert (table.categories != "").all()
    assert not pipeline.unreadable_images(table).size
    queries, catalogue = queries_and_catalogue(table, "test")
    assert len(queries) and len(catalogue)


def row(table, path):
    (index,) = np.nonzero(table.ids == path)[0]
    return table.select([index])


def test_sop(tmp_path):
    table = datasets.load("sop", sop(tmp_path))
    assert table.ids[0] == "bicycle_final/111085122871_0.JPG"
    assert table.products.tolist() == ["1", "1", "11319", "11319", "11320"]
    assert table.categories.tolist() == ["bicycle"] * 2 + ["coffee_maker"] * 2 + ["sofa"]
    assert table.splits.tolist() == ["train"] * 2 + ["test"] * 3


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


def test_cub(tmp_path):
    table = datasets.load("cub200", cub(tmp_path))
    assert table.splits.tolist() == ["train"] * 4 + ["test"] * 4  # species 1-100, 101-200
    assert table.products[2] == "100.Brown_Pelican" and table.categories[4] == "Pelican"
    assert table.boxes[0].tolist() == [1, 27, 31, 47]
    official = datasets.load("cub200", tmp_path, protocol="official")
    assert official.splits.tolist() == ["train", "test"] * 4
    with pytest.raises(ValueError, match="protocol must be"):
        datasets.load("cub200", tmp_path, protocol="mine")


def test_cars(tmp_path):
    table = datasets.load("cars196", cars(tmp_path))
    assert table.products.tolist()[:2] == ["Maker0 Model 1 2012", "Maker9 Model 98 2012"]
    assert table.splits.tolist() == ["train", "train", "test", "test"]
    assert table.categories[3] == "Maker19"
    assert table.boxes[0].tolist() == [5, 6, 20, 25]  # one-based inclusive -> zero-based exclusive
    official = datasets.load("cars196", tmp_path, protocol="official")
    assert official.splits.tolist() == ["test", "train", "test", "train"]


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
    with pytest.raises(ValueError, match="1 of .* pictures do not exist, the first is") as error:
        datasets.load(name, root)
    assert victim in str(error.value)
    assert len(datasets.load(name, root, check_files=False))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("sop", "Ebay_train.txt", "super_class_id path", "path", ":1: the header must be"),
        ("sop", "Ebay_train.txt", "2 1 1 ", "2 1 ", ":3: 3 cells instead of 4"),
        ("in_shop", "Eval/list_eval_partition.txt", "4\n", "5\n", "4 rows, its first line says 5"),
        ("in_shop", "Eval/list_eval_partition.txt", "4\n", "x\n", ":1: the first line must be"),
        ("in_shop", "Eval/list_eval_partition.txt", " gallery", " shop", ":6: .* 'shop' is none"),
        ("in_shop", "Anno/list_bbox_inshop.txt", "  208", "  x", "is not all numbers"),
        (
            "deepfashion_c2s",
            "Eval/list_eval_partition.txt",
            "2 val\n",
            "2 tset\n",
            "'tset' is none",
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
            ":3: .* in no folder",
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


def test_a_species_without_a_number(tmp_path):
    root = cub(tmp_path)
    for name in ("classes.txt", "image_class_labels.txt"):
        (root / name).write_text((root / name).read_text().replace("200", "x"))
    with pytest.raises(ValueError, match="image_class_labels.txt:7: 'x' is not all numbers"):
        datasets.load("cub200", root)


def test_a_picture_in_two_pairs_of_different_products(tmp_path):
    path = consumer_to_shop(tmp_path) / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(C2S.format(3, "shop", 1), C2S.format(2, "shop", 1)))
    with pytest.raises(ValueError, match=r"txt:7: .*shop_01.jpg is id_00003953 test shop here and"):
        datasets.load("deepfashion_c2s", tmp_path)


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
        ValueError, match="folder 'test' of a split, and 'notes', which is none of train, val"
    ):
        datasets.load("folder", root)


@pytest.mark.parametrize(
    "train, val, test", [("Train", "VAL", "Test"), ("training", "validation", "testing")]
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


def test_registry():
    with pytest.raises(ValueError, match=r"no data set 'cub'.*did you mean 'cub200'"):
        datasets.load("cub")
    with pytest.raises(ValueError, match="sop: give the folder"):
        datasets.load("sop")
