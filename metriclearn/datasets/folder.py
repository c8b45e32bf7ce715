"""A folder of images: the simplest layout for your own data.

root/red-shoe/1.jpg  root/red-shoe/2.png  root/hat/1.jpg ...     a folder per product
root/train/red-shoe/1.jpg  root/val/...  root/test/hat/1.jpg     a folder per split, products within
root/train/...  root/query/hat/1.jpg  root/catalogue/hat/2.jpg   test images with their roles
root/1.jpg  root/2.jpg                                           each image is one product

Folders of splits are recognized in any case and by their usual synonyms (`PARTS`), also as
`Test_Set`, `train-images` or `bounding_box_test`. Images can be at any depth below their product's
folder. Hidden files and folders (.name) are skipped, links to files and folders are followed, and
other files are ignored.
"""

import os
import re

from metriclearn.datasets.image_files import SUFFIXES
from metriclearn.datasets.table import ProductTable, one_line_errors, split_by_product

# (split, role) of a folder: its names, in lower case.
PARTS = {
    ("train", "train"): ("train", "training", "trn"),
    ("val", ""): (
        "val",
        "valid",
        "validation",
        "validate",
        "dev",
        "development",
        "vld",
        "eval",
        "evaluation",
    ),
    ("test", ""): ("test", "testing", "tst", "holdout"),
    ("test", "query"): ("query", "queries", "probe"),
    ("test", "catalogue"): ("catalogue", "catalog", "gallery"),
}
_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_WORDS_AROUND = r"^(boundingbox)|(set|split|data|images?|imgs?|photos?|pictures?)$"


@one_line_errors
def load(root, fractions=(0.7, 0.1, 0.2)):
    """Reads a folder, or a single image.

    If all folders of `root` are named after splits, they are the splits; otherwise they are the
    products, split by `split_by_product`.

    Args:
      root: the folder, or one image file.
      fractions: train, val and test fractions of the products, if there are no folders of splits;
        None: all splits are ''.

    Returns:
      A ProductTable. Ids are paths within the folder, with '/'.

    Raises:
      ValueError: there is no such folder or no image, a product has no image, a name is not UTF-8,
        a folder contains itself by a link, or only some folders are named after splits.
    """
    root = os.fspath(root)
    if os.path.isfile(root):
        name = os.path.basename(root)
        return _table([name], [root], [name], [""], [""], root, None)
    if not os.path.isdir(root):
        raise ValueError(f"{root}: there is no such folder or image")
    folders, loose = _visible(root)
    given = bool(folders) and all(map(_part_of, folders))
    if not given:
        _check_no_split_beside_products(root, folders)
    ids, products, splits, roles = [], [], [], []

    def add(names, product, part):
        ids.extend(names)
        products.extend([product] * len(names))
        splits.extend([part[0]] * len(names))
        roles.extend([part[1]] * len(names))

    for top in folders if given else [""]:
        part = _part_of(top) if given else ("", "")
        folder = os.path.join(root, top)
        inside, alone = _visible(folder)
        for product in inside:
            add(_images_below(root, os.path.join(top, product)), product, part)
        for name in filter(_is_image, alone):  # directly in it: one product
            path = f"{top}/{name}" if top else name
            add([path], path, part)
    if not ids:
        raise ValueError(f"{root}: contains no image ({', '.join(SUFFIXES)})")
    paths = [os.path.join(root, *name.split("/")) for name in ids]
    return _table(ids, paths, products, splits, roles, root, None if given else fractions)


def _part_of(folder):
    """The (split, role) of a folder's name, None for other names."""
    letters = re.sub(r"[\W_]+", "", folder.lower())
    return _PART_OF.get(letters) or _PART_OF.get(re.sub(_WORDS_AROUND, "", letters))


def _table(ids, paths, products, splits, roles, root, fractions):
    if fractions is not None:
        try:
            splits = split_by_product(products, fractions)
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from None
    for name in ids:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise ValueError(f"{root}: the name {name!r} is not UTF-8; rename the file")
    return ProductTable(ids=ids, paths=paths, products=products, splits=splits, roles=roles)


def _is_image(name):
    return name.lower().endswith(SUFFIXES)


def _visible(folder):
    """(names of folders, names of regular files) in a folder, sorted, links followed."""
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    return [e.name for e in shown if e.is_dir()], [e.name for e in shown if e.is_file()]


def _images_below(root, product, above=()):
    """Paths within root of the images at any depth of a product's folder, in order."""
    folder = os.path.join(root, product)
    here = os.path.realpath(folder)
    if here in above:
        raise ValueError(f"{folder}: is a link to a folder that contains it; remove the link")
    folders, names = _visible(folder)
    found = [f"{product.replace(os.sep, '/')}/{name}" for name in filter(_is_image, names)]
    for name in folders:
        found += _images_below(root, os.path.join(product, name), (*above, here))
    if not found and not above:
        raise ValueError(f"{folder}: no image ({', '.join(SUFFIXES)}) in the folder of a product")
    return sorted(found) if not above else found


def _check_no_split_beside_products(root, folders):
    """Raises ValueError if only some folders are splits: it is unclear which are products."""
    named = [name for name in folders if _part_of(name)]
    if len(named) < 2 and not any(_part_of(name)[0] == "train" for name in named):
        return
    other = next(name for name in folders if name not in named)
    known = ", ".join(names[0] for names in PARTS.values())
    raise ValueError(
        f"{root}: contains the folder {named[0]!r} of a split, and {other!r}, which is not one of "
        f"{known}: move one of them elsewhere"
    )
