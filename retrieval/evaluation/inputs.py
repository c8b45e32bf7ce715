"""Embeddings from files: .npy arrays with text files, stores, the vectors of an index."""

import dataclasses
import filecmp
import os

import numpy as np
import pyarrow

from retrieval import progress
from retrieval.catalogue import index, neighbours
from retrieval.embeddings import store
from retrieval.embeddings.store import Embedded
from trainer import files


def load_pair(queries, catalogue=None) -> tuple[Embedded, Embedded]:
    """Reads queries and catalogue.

    Row numbers are not ids. If one of two arrays has no ids, they are the same set if they are the
    same file or equal byte for byte; otherwise they have no item in common.

    Args:
      queries, catalogue: arguments of `load`, (embeddings, labels, ids, categories); None at the
        end may be omitted. catalogue None: each query is searched among the others.

    Returns:
      (queries, catalogue); the same object if both are the same set with the same labels.
    """
    asking = load(*queries)
    if catalogue is None:
        return asking, asking
    paths = [os.path.realpath(each[0]) for each in (queries, catalogue)]
    same = paths[0] == paths[1]
    if same and os.path.isdir(paths[0]) and not any(catalogue[1:]):
        return asking, asking
    items = load(*catalogue, name="catalogue")
    ids = [len(each) > 2 and each[2] for each in (queries, catalogue)]
    arrays = not all(ids) and all(map(os.path.isfile, paths))
    if arrays and (same or filecmp.cmp(paths[0], paths[1], shallow=False)):
        if ids[1]:
            asking = dataclasses.replace(asking, ids=items.ids)
        items = dataclasses.replace(items, ids=asking.ids)
        equal = (asking.products == items.products) & (asking.categories == items.categories)
        items = asking if equal.all() else items
    return asking, items


def load(embeddings, labels=None, ids=None, categories=None, *, name="queries") -> Embedded:
    """Reads one set.

    Args:
      embeddings: path of a .npy array [N, D] of floats, memory-mapped; or the folder of a store or
        of an index, whose vectors are decoded.
      labels: path of a text file, one product id per line.
      ids: one item id per line. None: row numbers, padded with zeros.
      categories: one per line.
      name: name of the set in messages and in ids made from row numbers.

    Raises:
      ValueError: a file cannot be read, or the files do not agree.
    """
    if os.path.isdir(embeddings):
        given = [path for path in (labels, ids, categories) if path]
        if given:
            raise ValueError(f"{given[0]}: {embeddings} has its own labels, ids and categories")
        return _of_folder(embeddings)
    if not os.path.exists(embeddings):
        raise ValueError(f"{embeddings}: cannot be read: there is no such file or folder")
    if labels is None:
        option = "query_labels" if name == "queries" else f"{name}_labels"
        raise ValueError(f"{embeddings}: needs --{option}, a file of one product id per line")
    array = store.load_array(embeddings)
    if array.ndim != 2:
        raise ValueError(f"{embeddings}: shape {list(array.shape)}, not [rows, dimensions]")
    rows = len(array)
    products = lines(labels, rows)  # before anything allocates memory per row
    width = len(str(max(0, rows - 1)))
    return Embedded(
        array,
        lines(ids, rows) if ids else np.array([f"{name}-{n:0{width}d}" for n in range(rows)]),
        products,
        lines(categories, rows) if categories else np.full(rows, ""),
    )


def _of_folder(folder):
    """The items of a store or an index."""
    try:
        return _of_index(folder) if is_index(folder) else store.read(folder)
    except (
        *(AttributeError, KeyError, IndexError, OverflowError, RuntimeError, TypeError),
        pyarrow.ArrowException,
    ) as error:
        # The content of their files has been checked; other errors mean damage.
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{folder}: is damaged ({type(error).__name__}: {reason}); make it again"
        ) from None


def is_index(folder):
    return os.path.exists(os.path.join(folder, "current"))


def origin(path) -> dict:
    """The source of the embeddings of a store or an index: 'checkpoint_sha256' (of the weights;
    None if unknown) and, for a store, the rest of its manifest's source."""
    if not os.path.isdir(path):
        return {"checkpoint_sha256": None}
    if is_index(path):
        return {"checkpoint_sha256": index.manifest_of(path)["weights"]}
    return {"checkpoint_sha256": None} | store.manifest_of(path)["source"]


def made_by(paths) -> list:
    """The models {'model', 'checkpoint'} that wrote these stores, if known."""
    sources = [origin(path) for path in paths if path]
    found = [{key: source.get(key) for key in ("model", "checkpoint")} for source in sources]
    return [each for n, each in enumerate(found) if each["model"] and each not in found[:n]]


def _of_index(folder):
    """The items of an index, with decoded vectors."""
    opened = index.Catalogue.open(folder)
    made, items, manifest = opened.index, opened.items, opened.manifest
    vectors = np.empty((made.ntotal, made.d), np.float32)
    starts = range(0, made.ntotal, neighbours.BLOCK)
    try:
        if "RaBitQ" in manifest["factory"]:  # FAISS decodes one bit, but searches with more
            raise RuntimeError("its codes can only be compared")
        for i in progress.track(starts, len(starts), f"vectors of {folder}, in blocks"):
            part = vectors[i : i + neighbours.BLOCK]
            made.reconstruct_n(i, len(part), part)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(
            f"{folder}: an index of the kind {manifest['factory']} cannot return its vectors "
            f"({reason}): give the store that it was built from"
        ) from None
    alive = items["alive"].to_numpy()
    columns = [np.array(items[name].to_pylist(), str)[alive] for name in store.COLUMNS]
    return Embedded(vectors[alive], *columns[:3], paths=columns[3], hashes=columns[4])


def lines(path, rows) -> np.ndarray:
    """The lines of a text file as str [rows], see `read_lines`."""
    values = read_lines(path)
    if len(values) != rows:
        raise ValueError(f"{path}: {len(values)} lines for {rows} embeddings: one line per row")
    return np.array(values, dtype=str) if values else np.empty(0, "U1")


def read_lines(path) -> list[str]:
    """The lines of a UTF-8 file.

    Raises:
      ValueError: it cannot be read, or a line is empty or holds a NUL character.
    """
    files.check_regular(path)
    try:
        # utf-8-sig: a byte order mark is not part of the first line.
        with open(path, encoding="utf-8-sig", newline="") as text:
            # Only line feeds end lines: an id may contain any other character.
            values = text.read().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None
    values = [value.removesuffix("\r") for value in values]
    if values == [""]:
        return []
    for number, value in enumerate(values, 1):
        if not value:
            raise ValueError(f"{path}, line {number}: is empty")
        if "\0" in value:  # at the end of a name NumPy would drop it and merge two names
            raise ValueError(f"{path}, line {number}: holds a NUL character")
    return values
