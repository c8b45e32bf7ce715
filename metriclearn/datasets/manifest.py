"""A CSV manifest of images: the reader for your own data.

    path,label[,category][,split][,role][,domain][,x1,y1,x2,y2][,anything else]
    images/0001.jpg,red-shoe,shoes,train,
    ...

`path` is relative to the manifest's folder (or to `root`), `label` is the product. `split` is
train | val | test | catalogue (shop images common to all splits), `role` is empty | train | query |
catalogue. Other columns are kept as text in the table's `extra`.

The file is UTF-8, with or without a byte-order mark. Cells are separated by commas, semicolons or
tabs (the header decides) and quoted as in RFC 4180. Spaces around a cell and rows without text are
ignored; `./a.jpg` and `a.jpg` are the same path. Text after a closing quote, a row with
more or fewer cells than the header, a column without a name and a path that occurs twice are
errors.
"""

import csv
import os

import numpy as np

from metriclearn.datasets import tar
from metriclearn.datasets.image_files import SUFFIXES
from metriclearn.datasets.table import (
    ROLES,
    SPLITS,
    ProductTable,
    did_you_mean,
    one_line_errors,
    split_by_product,
)

REQUIRED = ("path", "label")
BOX = ("x1", "y1", "x2", "y2")
KNOWN = (*REQUIRED, "category", "split", "role", "domain", *BOX)
SEPARATORS = (",", ";", "\t")


@one_line_errors
def load(path, root=None, fractions=(0.7, 0.1, 0.2), columns=""):
    """Reads a manifest and checks every row.

    Without a `split` column the products (not the images) are split by `split_by_product`: 70%
    train, 10% val, 20% test by the hash of their name. The products of val and test are thus not in
    train, and reading again gives the same split. Without a `role` column all roles are '' and a
    split is evaluated leave-one-out (`queries_and_catalogue`): each image is searched among all the
    others.

    Args:
      path: the CSV file, with a header; or `tar:PATTERN`, see `metriclearn.datasets.tar`.
      root: the folder to which paths are relative; None: the manifest's folder.
      fractions: train, val and test fractions of the products, used without a `split` column; None:
        all splits are ''.
      columns: other names of columns, such as `path=file,label=sku`, or a dict.

    Returns:
      A ProductTable whose ids are the paths as the manifest writes them, normalized.

    Raises:
      ValueError: the manifest is unreadable, a column is missing or misspelled, a row has too few
        or too many cells, a label is empty, a file is missing, a path occurs twice, a split or role
        is unknown, or a box is invalid. The error gives file and line.
    """
    if os.fspath(path).startswith(tar.PREFIX):
        if columns or root:
            raise ValueError(f"{path}: tar shards take neither root nor columns")
        return tar.load(os.fspath(path), fractions)
    path = os.path.expanduser(os.fspath(path))
    root = os.path.dirname(path) if root is None else os.fspath(root)
    rows = csv_rows(path)
    line, header = next(rows, (1, None))
    if header is None:
        raise ValueError(f"{path}: the manifest is empty; it needs a header with path and label")
    header = _renamed(path, line, header, columns)
    _check_header(path, line, header)
    has_boxes = "x1" in header
    cells_of = {name: [] for name in header if name not in BOX}
    files, boxes, seen = [], [], {}
    for line, cells in rows:
        where = f"{path}:{line}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells, the header has {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        _check_row(where, row)
        file = os.path.normpath(os.path.join(root, row["path"]))
        if file in seen:
            raise ValueError(f"{where}: {row['path']} already occurs on line {seen[file]}")
        seen[file] = line
        if not file.lower().endswith(SUFFIXES):
            raise ValueError(f"{where}: {row['path']} is not an image ({', '.join(SUFFIXES)})")
        if not os.path.isfile(file):
            raise ValueError(f"{where}: no such file: {file}")
        files.append(file)
        row["path"] = os.path.normpath(row["path"])
        if has_boxes:
            boxes.append(_box(where, [row[name] for name in BOX]))
        for name, values in cells_of.items():
            values.append(row[name])
    if not files:
        raise ValueError(f"{path}: the manifest has a header but no row")
    return ProductTable(
        products=cells_of["label"],
        paths=files,
        ids=cells_of["path"],
        categories=cells_of.get("category"),
        splits=_splits(path, cells_of, fractions),
        roles=cells_of.get("role"),
        domains=cells_of.get("domain"),
        boxes=boxes if has_boxes else None,
        extra={name: values for name, values in cells_of.items() if name not in KNOWN},
    )


def csv_rows(path):
    """Yields (line number, cells) of a CSV's rows that contain text; the header first.

    Raises:
      ValueError: the file cannot be read; the error gives the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            separator = _separator(file)
            reader = csv.reader(file, strict=True, delimiter=separator, skipinitialspace=True)
            line = 1
            try:
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        yield line, [cell.strip() for cell in cells]
                    line = reader.line_num + 1
            except csv.Error as error:
                raise ValueError(f"{path}:{line}: not valid CSV: {error}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}:1: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot read the manifest: {error.strerror}") from None


def _separator(file):
    """The separator that divides the header into the most cells; rewinds the file."""
    header = next((line for line in file if line.strip()), "")
    file.seek(0)
    # A quoted name may contain separators.
    bare = "".join(header.split('"')[::2])
    return max(SEPARATORS, key=bare.count)


def _renamed(path, line, header, columns):
    """The header with other names of columns replaced by ours."""
    if isinstance(columns, str):
        pairs = [pair.partition("=") for pair in columns.split(",") if pair.strip()]
        columns = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    for ours, theirs in columns.items():
        if ours not in KNOWN:
            raise ValueError(
                f"columns: {ours!r} is not one of {', '.join(KNOWN)}{did_you_mean(ours, KNOWN)}"
            )
        if theirs not in header:
            raise ValueError(
                f"{path}:{line}: no column {theirs!r}{did_you_mean(theirs, header)}, which "
                f"columns names for {ours}; the header has {', '.join(header)}"
            )
    # Another column that already has our name is kept under a new name.
    ours_of = {theirs: ours for ours, theirs in columns.items()}
    return [ours_of.get(name, f"original {name}" if name in columns else name) for name in header]


def _check_header(path, line, header):
    for name in header:
        if not name:
            raise ValueError(f"{path}:{line}: a column has no name")
        if header.count(name) > 1:
            raise ValueError(f"{path}:{line}: the column {name!r} occurs twice")
    for name in REQUIRED:
        if name not in header:
            others = [other for other in header if other not in KNOWN]
            raise ValueError(
                f"{path}:{line}: no column {name!r}{did_you_mean(name, others)}; the header must "
                f"have path and label, it has {', '.join(header)}; columns=path=…,label=… maps "
                "other names"
            )
    # A misspelled optional column would otherwise be kept as an extra column and silently ignored.
    absent = [name for name in KNOWN[2:6] if name not in header]
    for name in header:
        meant = did_you_mean(name, absent, cutoff=0.8)
        if name not in KNOWN and meant:
            raise ValueError(f"{path}:{line}: unknown column {name!r}{meant}")
    if 0 < sum(name in header for name in BOX) < 4:
        raise ValueError(f"{path}:{line}: a box needs all four columns x1, y1, x2, y2")


def _check_row(where, row):
    for name in REQUIRED:
        if not row[name]:
            raise ValueError(f"{where}: the {name} is empty")
    if "\0" in row["path"]:
        raise ValueError(f"{where}: the path contains a NUL character")
    for name, allowed in (("split", SPLITS), ("role", ROLES)):
        if name not in row:
            continue
        if name == "split" and not row[name]:
            raise ValueError(f"{where}: the split is empty; write one of {', '.join(SPLITS)}")
        if row[name] not in allowed:
            raise ValueError(
                f"{where}: {name} {row[name]!r} is not one of {', '.join(filter(None, allowed))}"
                + did_you_mean(row[name], allowed)
            )


def _box(where, cells):
    if not any(cells):
        return (0, 0, 0, 0)
    try:
        x1, y1, x2, y2 = (int(cell) for cell in cells)
    except ValueError:
        text = ",".join(cells)
        raise ValueError(f"{where}: the box {text} is not four whole numbers") from None
    if not (0 <= x1 < x2 < 2**31 and 0 <= y1 < y2 < 2**31):
        raise ValueError(
            f"{where}: the box {x1},{y1},{x2},{y2} must have 0 <= x1 < x2, 0 <= y1 < y2"
        )
    return (x1, y1, x2, y2)


def _splits(path, cells_of, fractions):
    if "split" in cells_of or fractions is None:
        return cells_of.get("split")
    try:
        splits = split_by_product(cells_of["label"], fractions)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "role" in cells_of:
        # If shop images were in one split, the other splits would have no catalogue.
        splits = np.where(np.asarray(cells_of["role"]) == "catalogue", "catalogue", splits)
    return splits
