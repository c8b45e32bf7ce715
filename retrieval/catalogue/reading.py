"""The files of an index: manifest, checksums, items, FAISS index."""

import os
import re

import faiss
import pyarrow

from retrieval.catalogue import inverted_lists, versions
from retrieval.embeddings import store
from trainer import files

ITEMS = pyarrow.schema(
    # large: the texts of a column may take more than 2 GiB.
    [*((name, pyarrow.large_string()) for name in store.COLUMNS), ("alive", pyarrow.bool_())]
)
MODEL = "model"  # folder of the model within a version
KEYS = {"factory", "on_disk", "similarity", "dimensions", "weights", "tuned", "version"}
KEYS |= {"count", "removed", "bytes_per_vector", "bytes", "sha256"}


def manifest_of(folder) -> dict:
    """Returns the manifest of the current version, without reading the index."""
    return current(folder)[1]


def current(folder):
    """Returns (folder, manifest) of the current version."""
    version = versions.current(folder)
    return version, manifest_in(version)


def manifest_in(version):
    """Returns the manifest in the folder of a version; ValueError if it is damaged."""
    path = os.path.join(version, "manifest.json")
    manifest = files.read_sealed(path, KEYS, "an index")
    tuned, names = manifest["tuned"], {"index.faiss", "items.arrow"}
    if (
        not isinstance(tuned, dict)
        or not {"effort", "recall", "ms_per_query", "asked", "k"} <= tuned.keys()
        or not names <= manifest["sha256"].keys()
        or not all(re.fullmatch(versions.CONTENTS, name) for name in manifest["sha256"])
        or manifest["bytes"].keys() != manifest["sha256"].keys()
    ):
        raise ValueError(f"{path}: is damaged: its entries are not those of retrieval.index")
    return manifest


def check_files(folder, version, manifest, everything):
    """Raises ValueError for a file of a version that is missing or damaged.

    Args:
      folder: the index.
      version: folder of the version.
      manifest: its manifest.
      everything: see `Catalogue.open`.
    """
    others = [n for n in versions.numbers(folder) if n != manifest["version"]]
    again = f"go back with `index rollback --to={others[-1]}`" if others else "build it again"
    for name in manifest["sha256"]:
        large = name.endswith(inverted_lists.LISTS) or name.startswith(f"{MODEL}/")
        check_file(version, name, manifest, again, everything or not large)


def check_file(version, name, manifest, remedy, whole=True) -> None:
    """Raises ValueError for one file of a version that is missing or damaged."""
    path = os.path.join(version, name)
    if not os.path.isfile(path):
        raise ValueError(f"{path}: is missing from its index; {remedy}")
    damaged = os.path.getsize(path) != manifest["bytes"][name]
    if damaged or (whole and files.sha256(path) != manifest["sha256"][name]):
        raise ValueError(f"{path}: is damaged (its checksum differs); {remedy}")


def read_items(folder) -> pyarrow.Table:
    """The items in a folder, memory-mapped; ValueError if they cannot be read."""
    try:
        items = pyarrow.ipc.open_file(pyarrow.memory_map(os.path.join(folder, "items.arrow")))
        items = items.read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{folder}/items.arrow: cannot be read: {error}") from None
    if items.schema != ITEMS:
        raise ValueError(f"{folder}: was written by another version of Prototrain: build it again")
    return items


def read(version, manifest):
    """Returns (FAISS index, items) of a version; ValueError if they cannot be read."""
    items = read_items(version)
    read = inverted_lists.read if manifest["on_disk"] else faiss.read_index
    folders = [f"part-{n:05d}" for n in range(manifest.get("parts", 0))]
    try:
        if folders:
            read_in = [read(os.path.join(version, f, "index.faiss")) for f in folders]
            index = inverted_lists.Stacked(read_in)
        else:
            index = read(os.path.join(version, "index.faiss"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"{version}/index.faiss: cannot be read: {reason}") from None
    if index.d != manifest["dimensions"] or index.ntotal != len(items):
        raise ValueError(f"{version}: index and items do not belong together")
    return index, items


def reconstruct(index, factory, row, out) -> None:
    """Fills `out`, float32 [n, D], with the decoded vectors from a row on.

    Raises:
      ValueError: this kind of index cannot return vectors.
    """
    try:
        if "RaBitQ" in factory:  # FAISS decodes one bit of it, but searches with more
            raise RuntimeError("its codes can only be compared")
        index.reconstruct_n(row, len(out), out)
    except RuntimeError as error:
        raise ValueError(
            f"an index of the kind {factory} cannot return the vector of an item "
            f"({str(error).splitlines()[-1]})"
        ) from None
