"""Embeddings of any origin: .npy arrays beside text files, stores, the vectors of an index."""

import os

import numpy as np

from retrieval import progress
from retrieval.catalogue import index, neighbours
from retrieval.embeddings import store
from retrieval.embeddings.store import Embedded


def load(embeddings, labels=None, ids=None, categories=None, *, name="queries") -> Embedded:
    """Reads one set.

    embeddings: path of a .npy array [N, D] of floats, memory-mapped, or the folder of a store or of
    an index, whose vectors are taken as it keeps them. labels: path of a text file, one product id
    a line. ids: one item id a line; the row number, padded with zeros so that it orders as it
    counts, where there is none. categories: one a line. Raises ValueError where a file cannot be
    read or the files do not agree.
    """
    if os.path.isdir(embeddings):
        given = [path for path in (labels, ids, categories) if path]
        if given:
            raise ValueError(f"{given[0]}: {embeddings} brings its own labels, ids and categories")
        return _of_index(embeddings) if is_index(embeddings) else store.read(embeddings)
    if not os.path.exists(embeddings):
        raise ValueError(f"{embeddings}: cannot be read: there is no such file or folder")
    if labels is None:
        option = "query_labels" if name == "queries" else f"{name}_labels"
        raise ValueError(f"{embeddings}: needs --{option}, a file of one product id a line")
    array = _array(embeddings)
    if array.ndim != 2:
        raise ValueError(f"{embeddings}: shape {list(array.shape)}, not [rows, dimensions]")
    if array.dtype.kind != "f":
        raise ValueError(f"{embeddings}: holds {array.dtype}, not floats")
    rows = len(array)
    width = len(str(max(0, rows - 1)))
    return Embedded(
        array,
        lines(ids, rows) if ids else np.array([f"{name}-{n:0{width}d}" for n in range(rows)]),
        lines(labels, rows),
        lines(categories, rows) if categories else np.full(rows, ""),
    )


def _array(path):
    try:
        with open(path, "rb") as data:
            start = data.read(6)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if start != b"\x93NUMPY":  # NumPy would call it a pickle, and tell how to load one
        raise ValueError(f"{path}: is not a NumPy array (.npy), as numpy.save writes it")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a NumPy array that can be read: {error}") from None


def is_index(folder):
    return os.path.exists(os.path.join(folder, "current"))


def origin(path) -> dict:
    """What made the embeddings of a store or an index: 'checkpoint_sha256' (of the weights; None
    where unknown) and, of a store, what else its manifest tells."""
    if not os.path.isdir(path):
        return {"checkpoint_sha256": None}
    if is_index(path):
        return {"checkpoint_sha256": index.manifest_of(path)["weights"]}
    return {"checkpoint_sha256": None} | store.manifest_of(path)["source"]


def made_by(paths) -> list:
    """The models {'model', 'checkpoint'} whose datasets these stores are of, as far as known."""
    sources = [origin(path) for path in paths if path]
    found = [{key: source.get(key) for key in ("model", "checkpoint")} for source in sources]
    return [each for n, each in enumerate(found) if each["model"] and each not in found[:n]]


def _of_index(folder):
    """The items of an index, their vectors as its codes hold them."""
    opened = index.Catalogue.open(folder)
    made, items, manifest = opened.index, opened.items, opened.manifest
    vectors = np.empty((made.ntotal, made.d), np.float32)
    starts = range(0, made.ntotal, neighbours.BLOCK)
    try:
        if "RaBitQ" in manifest["factory"]:  # FAISS decodes a bit of it, and searches with more
            raise RuntimeError("its codes are made for comparing only")
        for i in progress.track(starts, len(starts), f"vectors of {folder}, in blocks"):
            part = vectors[i : i + neighbours.BLOCK]
            made.reconstruct_n(i, len(part), part)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(
            f"{folder}: an index of the kind {manifest['factory']} does not give its vectors back "
            f"({reason}): name the store that it was built of"
        ) from None
    alive = items["alive"].to_numpy()
    names = (np.array(items[n].to_pylist(), str)[alive] for n in ("id", "product", "category"))
    return Embedded(vectors[alive], *names)


def lines(path, rows):
    """The lines of a UTF-8 file as str [rows]; none may be empty."""
    values = read_lines(path)
    if len(values) != rows:
        raise ValueError(f"{path}: {len(values)} lines for {rows} embeddings: one line a row")
    return np.array(values, dtype=str) if values else np.empty(0, "U1")


def read_lines(path) -> list:
    """The lines of a UTF-8 file, none of which may be empty; ValueError, naming it, otherwise."""
    try:
        # utf-8-sig: a mark that some programs begin a file with is no part of its first line.
        with open(path, encoding="utf-8-sig", newline="") as text:
            # Only line feeds part lines: an id may hold any other character.
            values = text.read().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None
    values = [value.removesuffix("\r") for value in values]
    if values == [""]:
        return []
    if "" in values:
        raise ValueError(f"{path}, line {values.index('') + 1}: is empty")
    return values
