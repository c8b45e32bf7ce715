"""Cars196 (Krause et al. 2013, "3D Object Representations for Fine-Grained Categorization"):
16,185 images of 196 models of cars, with boxes.

    cars_annos.mat      MATLAB: struct array `annotations`, cell array `class_names`
    car_ims/000001.jpg ...
Classes and pixels of boxes are counted from one; boxes include their last row and column.
"""

import os

import numpy as np

from metriclearn.datasets import layout
from metriclearn.datasets.table import ProductTable

PAGE = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, car_ims.tgz and cars_annos.mat"
NAME = "Cars196"
TRAIN_CLASSES = 98
FIELDS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")


def load(root, protocol="metric_learning", check_files=True):
    """Models as products ('BMW M3 Coupe 2012'), the first word (the maker) as their category.

    Args:
      root: the folder of cars_annos.mat.
      protocol: 'metric_learning' trains on the first 98 models and tests on the other 98, as is
        usual; 'official' is the annotation's split (all models in both).
      check_files: whether to check that every image exists.

    Raises:
      ValueError: files are missing or damaged (the error names them), or scipy is not installed.
    """
    if protocol not in ("metric_learning", "official"):
        raise ValueError(f"protocol must be 'metric_learning' or 'official', not {protocol!r}")
    file, _ = layout.require(root, ["cars_annos.mat", "car_ims"], NAME, PAGE, check_files)
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(
            f"{NAME}: reading {file} needs scipy; pip install 'prototrain[cars]'"
        ) from None
    try:
        content = loadmat(file, squeeze_me=True)
        annotations, names = content["annotations"], content["class_names"]
        rows = np.atleast_1d(annotations)
        columns = {field: rows[field] for field in FIELDS}
        columns |= {field: columns[field].astype(np.int32) for field in FIELDS[1:]}
    except Exception as error:  # scipy's reader raises many kinds for other files
        raise ValueError(
            f"{file}: not the official annotation, with annotations ({', '.join(FIELDS)}) and "
            f"class_names ({type(error).__name__}: {error})"
        ) from None
    classes = columns["class"]
    names = np.atleast_1d(names).astype(np.str_)
    if classes.min() < 1 or classes.max() > len(names):
        raise ValueError(
            f"{file}: classes go from {classes.min()} to {classes.max()}, class_names has "
            f"{len(names)}"
        )
    ids = columns["relative_im_path"].astype(np.str_)
    paths = [os.path.join(root, *path.split("/")) for path in ids.tolist()]
    if check_files:
        layout.check_files(paths, NAME)
    boxes = np.stack([columns[field] for field in FIELDS[1:5]], 1) - [1, 1, 0, 0]
    if protocol == "official":
        test = columns["test"].astype(bool)
    else:
        test = classes > TRAIN_CLASSES
    products = names[classes - 1]
    return ProductTable(
        ids=ids,
        paths=paths,
        products=products,
        categories=[product.split()[0] for product in products.tolist()],
        splits=np.where(test, "test", "train"),
        boxes=boxes,
    )
