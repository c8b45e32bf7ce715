"""Stanford Online Products (Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured
Feature Embedding"): 120,053 eBay images of 22,634 products in 12 categories.

    Ebay_train.txt  Ebay_test.txt     header `image_id class_id super_class_id path`
    bicycle_final/111085122871_0.JPG ...
"""

import os

from metriclearn.datasets import layout
from metriclearn.datasets.table import ProductTable

PAGE = "https://cvgl.stanford.edu/projects/lifted_struct/, Stanford_Online_Products.zip"
NAME = "Stanford Online Products"
HEADER = ("image_id", "class_id", "super_class_id", "path")


def load(root, check_files=True):
    """The official split: the products of Ebay_train.txt train, those of Ebay_test.txt test.

    Products are 'class_id', categories the folders without '_final' ('bicycle'). There are no
    roles: the usual protocol is leave-one-out among the test images.

    Args:
      root: folder of the lists.
      check_files: whether to check that all 120,053 images exist.

    Raises:
      ValueError: files are missing or damaged; the error gives file and line.
    """
    lists = layout.require(root, ["Ebay_train.txt", "Ebay_test.txt"], NAME, PAGE)
    columns = {name: [] for name in ("ids", "paths", "products", "categories", "splits")}
    for file, split in zip(lists, ("train", "test"), strict=True):
        for _, (_, product, _, path) in layout.read_table(file, 4, skip_header=HEADER):
            columns["ids"].append(path)
            columns["paths"].append(os.path.join(root, *path.split("/")))
            columns["products"].append(product)
            columns["categories"].append(path.split("/")[0].removesuffix("_final"))
            columns["splits"].append(split)
    if check_files:
        layout.check_files(columns["paths"], NAME)
    return ProductTable(**columns)
