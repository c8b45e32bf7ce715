"""Embeddings of any origin: .npy arrays beside text files of labels and ids."""

import os

import numpy as np

from retrieval import store
from retrieval.store import Embedded


def load(embeddings, labels=None, ids=None, categories=None, *, name="queries") -> Embedded:
    """Reads one set.

    embeddings: path of a .npy array [N, D] of floats, memory-mapped, or of a store. labels: path of
    a text file, one product id a line. ids: one item id a line; the row number, padded with zeros
    so that it orders as it counts, where there is none. categories: one a line. Raises ValueError
    where a file cannot be read or the files do not agree.
    """
    if os.path.isdir(embeddings):
        return store.read(embeddings)
    if labels is None:
        raise ValueError(f"{embeddings}: name the file of its labels, one product id a line")
    try:
        array = np.load(embeddings, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{embeddings}: not a NumPy array that can be read: {error}") from None
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


def lines(path, rows):
    """The lines of a UTF-8 file as str [rows]; none may be empty."""
    try:
        with open(path, encoding="utf-8", newline="") as text:
            # Only line feeds part lines: an id may hold any other character.
            values = text.read().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None
    values = [value.removesuffix("\r") for value in values]
    if values == [""]:
        values = []
    if len(values) != rows:
        raise ValueError(f"{path}: {len(values)} lines for {rows} embeddings: one line a row")
    empty = [n for n, value in enumerate(values, 1) if not value]
    if empty:
        raise ValueError(f"{os.fspath(path)}, line {empty[0]}: is empty")
    return np.array(values, dtype=str) if values else np.empty(0, "U1")
