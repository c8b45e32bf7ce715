"""Stores of points for tests, with awkward names."""

import numpy as np
import pytest

from retrieval.embeddings import store

NASTY = "<b>\n\"',é"


def items(points, start=0, name="i"):
    rows = range(start, start + len(points))
    return store.Embedded(
        points,
        np.array([f"{name}{n:04d}{NASTY}" for n in rows]),
        np.array([f"p{n // 2}" for n in rows]),
        np.array(["even" if n % 2 == 0 else "odd" for n in rows]),
    )


def numbers(catalogue, found):
    """The numbers of items [Q, k] that a search found, as `items` numbers them."""
    of_row = np.array([int(name[1:5]) for name in catalogue.items["id"].to_pylist()])
    return of_row[found.rows]


def write_store(folder, parts, weights="w1", dtype="float32"):
    folder.mkdir()
    manifest = store.begin(folder, {"checkpoint_sha256": weights}, dtype)
    for part in parts:
        store.append(folder, manifest, part, 1)
    store.finish(folder, manifest)
    return folder


def run_program(program, *arguments):
    """Runs a program in this process, as its command line would; returns the exit code."""
    with pytest.raises(SystemExit) as ended:
        program.run([program.__name__, *map(str, arguments)])
    return ended.value.code or 0
