"""A folder for every product: the simplest layout for data of one's own.

root/red-shoe/1.jpg  root/red-shoe/2.png  root/hat/1.jpg ...             split by product
root/train/red-shoe/1.jpg  root/val/...  root/test/hat/1.jpg ...         the split as given
root/train/...  root/query/hat/1.jpg  root/catalogue/hat/2.jpg           test, with roles
"""

import os

from metriclearn.datasets import layout
from metriclearn.datasets.table import ProductTable, split_by_product

# A folder's name -> (split, role). 'gallery' is what many call the catalogue.
PARTS = {
    "train": ("train", "train"),
    "val": ("val", ""),
    "test": ("test", ""),
    "query": ("test", "query"),
    "catalogue": ("test", "catalogue"),
    "gallery": ("test", "catalogue"),
}


def _folders(path):
    """Names of the visible folders in `path`, sorted."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def load(root, fractions=(0.7, 0.1, 0.2)):
    """Every picture at any depth below a product's folder; other files are passed over.

    When all folders of `root` are among train, val, test, query, catalogue and gallery they are the
    split; otherwise they are the products, split by `split_by_product`.

    Args:
      root: the folder.
      fractions: train, val and test shares of the products, without folders for the splits.

    Raises:
      ValueError: no such folder, no product, a product without a picture; a folder train beside
        one that is none of the splits.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise ValueError(f"{root}: no such folder; give the folder that holds one for each product")
    parts = _folders(root)
    given = bool(parts) and set(parts) <= set(PARTS)
    if not given and "train" in parts:
        strange = next(part for part in parts if part not in PARTS)
        raise ValueError(
            f"{root}: has a folder train, and {strange!r}, which is none of {', '.join(PARTS)}: "
            "move one of them elsewhere"
        )
    ids, products, splits, roles = [], [], [], []
    for part in parts if given else [""]:
        for product in _folders(os.path.join(root, part)):
            top = os.path.join(root, part, product)
            before = len(ids)
            for folder, subfolders, names in os.walk(top):
                subfolders.sort()
                for name in sorted(names):
                    if name.lower().endswith(layout.PICTURES) and not name.startswith("."):
                        path = os.path.relpath(os.path.join(folder, name), root)
                        ids.append(path.replace(os.sep, "/"))
            new = len(ids) - before
            if not new:
                kinds = ", ".join(layout.PICTURES)
                raise ValueError(f"{top}: no picture ({kinds}) in the folder of a product")
            products += [product] * new
            split, role = PARTS.get(part, ("", ""))
            splits += [split] * new
            roles += [role] * new
    if not ids:
        raise ValueError(f"{root}: no folder of a product with pictures in it")
    if not given:
        try:
            splits = split_by_product(products, fractions)
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from None
    paths = [os.path.join(root, *path.split("/")) for path in ids]
    return ProductTable(ids=ids, paths=paths, products=products, splits=splits, roles=roles)
