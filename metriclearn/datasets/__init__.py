"""Product tables: one reader per data set, called by `load("sop", root)`."""

from metriclearn.datasets import cars, cub, deepfashion, folder, glyphs, grocery, manifest, sop
from metriclearn.datasets.table import (
    ProductTable,
    did_you_mean,
    parse_conditions,
    queries_and_catalogue,
    select_where,
    split_by_product,
    whole_catalogue,
)

READERS = {
    "cars196": cars.load,
    "cub200": cub.load,
    "deepfashion_c2s": deepfashion.load_consumer_to_shop,
    "folder": folder.load,
    "glyphs": glyphs.load,
    "grocery": grocery.load,
    "in_shop": deepfashion.load_in_shop,
    "manifest": manifest.load,
    "sop": sop.load,
}

__all__ = [
    "READERS",
    "ProductTable",
    "load",
    "parse_conditions",
    "queries_and_catalogue",
    "select_where",
    "split_by_product",
    "whole_catalogue",
]


def load(name, root=None, **options):
    """The ProductTable of a data set.

    Args:
      name: one of READERS.
      root: its folder (for 'manifest', the CSV file); 'glyphs' needs none.
      options: other arguments of the reader.

    Raises:
      ValueError: the name is unknown, there is no root, or the reader finds an error in the data.
    """
    if name not in READERS:
        raise ValueError(
            f"no data set {name!r}{did_you_mean(name, READERS)}; there are {', '.join(READERS)}"
        )
    if root is None:
        if name != "glyphs":
            raise ValueError(f"{name}: give the folder of the data set")
        return glyphs.load(**options)
    return READERS[name](root, **options)
