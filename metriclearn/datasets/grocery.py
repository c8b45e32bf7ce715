"""Grocery Store (Klasson et al. 2019, "A Hierarchical Grocery Store Image Dataset with Visual and
Semantic Labels"): 5,125 photos of 81 products, and one iconic shop image of each.

    dataset/classes.csv   dataset/train.txt  val.txt  test.txt
    dataset/train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg ...
    dataset/iconic-images-and-descriptions/...
"""

import csv
import io
import os

from metriclearn.datasets import layout
from metriclearn.datasets.table import ProductTable

PAGE = "git clone https://github.com/marcusklasson/GroceryStoreDataset"
NAME = "Grocery Store"
CLASS_COLUMNS = (
    "Class Name (str)",
    "Class ID (int)",
    "Coarse Class Name (str)",
    "Coarse Class ID (int)",
    "Iconic Image Path (str)",
)


def load(root, check_files=True):
    """The official lists: train and val photos for training and validation, test photos as queries.

    The iconic images are the catalogue of every split. All products are in all splits: the test is
    to find the shop image of a known product from a new photo. Categories are the top
    folders (Fruit, Packages, Vegetables); extra columns are `coarse` (Apple) and `label_id`.

    Args:
      root: the clone, or its folder `dataset`.
      check_files: whether to check that every image exists.

    Raises:
      ValueError: files are missing or damaged; the error gives file and line.
    """
    if os.path.isdir(os.path.join(root, "dataset")):
        root = os.path.join(root, "dataset")
    names = ["classes.csv", "train.txt", "val.txt", "test.txt"]
    classes_file, *lists = layout.require(root, names, NAME, PAGE)
    columns = {name: [] for name in ("ids", "products", "categories", "splits", "roles")}
    extra = {"coarse": [], "label_id": []}

    def add(file, line, path, label, split, role):
        folders = path.split("/")[1:-1]
        if not folders:
            raise ValueError(f"{file}:{line}: {path!r} is not in the folder of a category")
        columns["ids"].append(path)
        columns["products"].append(classes[label][0])
        columns["categories"].append(folders[0])
        columns["splits"].append(split)
        columns["roles"].append(role)
        extra["coarse"].append(classes[label][1])
        extra["label_id"].append(label)

    classes = {}
    reader = csv.DictReader(io.StringIO(layout.read_text(classes_file), newline=""))
    missing = [name for name in CLASS_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{classes_file}:1: no column {missing[0]!r}")
    for row in reader:
        name, label, coarse, _, path = (row[column] for column in CLASS_COLUMNS)
        if not path:
            raise ValueError(f"{classes_file}:{reader.line_num}: the row is truncated")
        classes[label] = name, coarse
        # '/iconic-images-and-descriptions/Fruit/Apple/...': rooted at the data set's folder.
        path = path.lstrip("/")
        add(classes_file, reader.line_num, path, label, "catalogue", "catalogue")
    for file, split in zip(lists, ("train", "val", "test"), strict=True):
        for line, (path, label, _) in layout.read_table(file, 3, separator=","):
            if label not in classes:
                raise ValueError(f"{file}:{line}: the class {label} is not in classes.csv")
            role = "query" if split == "test" else "train"
            add(file, line, path, label, split, role)
    paths = [os.path.join(root, *path.split("/")) for path in columns["ids"]]
    if check_files:
        layout.check_files(paths, NAME)
    return ProductTable(paths=paths, **columns, extra=extra)
