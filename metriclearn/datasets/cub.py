"""CUB-200-2011 (Wah et al. 2011): 11,788 images of 200 bird species, with boxes.

    images.txt  image_class_labels.txt  classes.txt  bounding_boxes.txt  train_test_split.txt
    images/001.Black_footed_Albatross/...jpg
All ids are counted from one; boxes are x, y, width, height with decimals.
"""

import os

from metriclearn.datasets import layout
from metriclearn.datasets.table import ProductTable

PAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/, CUB_200_2011.tgz"
NAME = "CUB-200-2011"
LISTS = {
    "images.txt": 2,
    "image_class_labels.txt": 2,
    "classes.txt": 2,
    "bounding_boxes.txt": 5,
    "train_test_split.txt": 2,
}
TRAIN_CLASSES = 100


def load(root, protocol="metric_learning", check_files=True):
    """Species as products, the last word of a species as its category ('Albatross').

    Args:
      root: the folder of the lists.
      protocol: 'metric_learning' trains on the first 100 species and tests on the other 100, as
        is usual; 'official' is train_test_split.txt (all species in both).
      check_files: whether to check that every image exists.

    Raises:
      ValueError: files are missing or damaged; the error gives file and line.
    """
    if protocol not in ("metric_learning", "official"):
        raise ValueError(f"protocol must be 'metric_learning' or 'official', not {protocol!r}")
    *files, images = layout.require(root, [*LISTS, "images"], NAME, PAGE, check_files)
    lists = {}
    for file, (name, columns) in zip(files, LISTS.items(), strict=True):
        lists[name] = {}
        for line, (key, *cells) in layout.read_table(file, columns):
            if key in lists[name]:
                raise ValueError(f"{file}:{line}: the id {key} is there twice")
            lists[name][key] = line, cells
        # images.txt is the first; all lists except that of classes must have the same images.
        differ = lists[name].keys() ^ lists["images.txt"].keys()
        if differ and name != "classes.txt":
            key = min(differ, key=lambda key: (len(key), key))
            raise ValueError(f"{file}: the image {key} is in this list or in images.txt, not both")
    paths, products, categories, splits, boxes = [], [], [], [], []
    for key, (_, (path,)) in lists["images.txt"].items():
        line, (label,) = lists["image_class_labels.txt"][key]
        if label not in lists["classes.txt"]:
            raise ValueError(f"{files[1]}:{line}: the class {label} is not in classes.txt")
        product = lists["classes.txt"][label][1][0]
        (number,) = layout.whole_numbers(files[1], line, [label])
        line, cells = lists["train_test_split.txt"][key]
        if cells[0] not in ("0", "1"):
            raise ValueError(f"{files[4]}:{line}: {cells[0]!r} is neither 0 (test) nor 1 (train)")
        train = cells[0] == "1" if protocol == "official" else number <= TRAIN_CLASSES
        line, cells = lists["bounding_boxes.txt"][key]
        x, y, width, height = layout.whole_numbers(files[3], line, cells)
        paths.append(path)
        products.append(product)
        categories.append(product.rsplit("_", 1)[-1])
        splits.append("train" if train else "test")
        boxes.append((x, y, x + width, y + height))
    files = [os.path.join(images, *path.split("/")) for path in paths]
    if check_files:
        layout.check_files(files, NAME)
    return ProductTable(
        ids=paths, paths=files, products=products, categories=categories, splits=splits, boxes=boxes
    )
