"""The store: embeddings on disk in shards, with a table of their items and their source.

    DIR/.prototrain             marks the folder as a store
    DIR/manifest.json           source and number of the embeddings, one entry per shard
    DIR/00000.npy               embeddings [n, D], float32 or float16, memory-mapped when read
    DIR/00000.parquet           id, product, category, path and sha256 of every row

A store filled by several processes has longer file names (see `retrieval.embeddings.parts`). DIR
may be the URL of object storage (see `retrieval.embeddings.places`).

`path` is the real path of the image file ('' for an image that is not a file), `sha256` the hash of
its bytes. A shard is part of the store when the manifest names it. The manifest is written last, so
a store whose writer was killed resumes after its last complete shard.
"""

import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow

from retrieval.embeddings import places
from retrieval.embeddings.arrays import load_array
from retrieval.embeddings.threads import Behind
from trainer import files

COLUMNS = ("id", "product", "category", "path", "sha256")
KIND = "store"  # the kind of folder in the marker file
NAME = r"\d{5}(-\d{5}-[0-9a-f]{12})?"  # a shard's files; never outside of the folder
FILES = rf"{NAME}\.(npy|parquet)|manifest\.json"
LITTER = r"\..*\.tmp"  # left by a killed writer
PARTS = "parts/plan.json"  # while a store is filled in parts


class OtherSource(ValueError):
    """A store contains embeddings of other images, or of another model."""


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings float32 [N, D] and the item of each row.

    Attributes:
      embeddings: float [N, D].
      ids: str [N], unique.
      products: str [N].
      categories: str [N], '' if there is none.
      images: uint8 [N, S, S, C], the images reduced to at most 32 x 32; None if unknown.
      paths: str [N], the real paths of the image files, '' for an image that is not a file; None if
        no image is a file.
      hashes: str [N], SHA-256 of each image's bytes in hexadecimal, '' if unknown; None if all are
        unknown.
      features: float [N, F], the backbone's features before training; None if unknown.
    """

    embeddings: np.ndarray
    ids: np.ndarray
    products: np.ndarray
    categories: np.ndarray
    images: np.ndarray | None = dataclasses.field(default=None, repr=False)
    paths: np.ndarray | None = None
    hashes: np.ndarray | None = None
    features: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __len__(self):
        return len(self.embeddings)


def joined(parts: list[Embedded]) -> Embedded:
    """Returns consecutive parts as one."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(Embedded):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if values[0] is None else np.concatenate(values)
    return Embedded(**columns)


# ---------------------------------------------------------------------------- writing


def fill(
    folder: str,
    source: dict,
    rest: Callable[[int], Iterable[tuple[Embedded, list[str]]]],
    *,
    dtype: str = "float32",
    shard_rows: int = 65536,
    shard_seconds: float = math.inf,
    wait: str = "",
) -> dict:
    """Writes a store from batches, or resumes an interrupted run.

    Args:
      folder: the store's folder; new, empty, or a store of the same source.
      source: what the embeddings depend on (checkpoint and configuration hashes, dataset,
        preprocessing), as JSON values.
      rest: returns the batches after the first n: (items, a line per skipped image).
      dtype: 'float32' or 'float16'.
      shard_rows: approximate rows per shard; a kill loses at most one shard.
      shard_seconds: a shard also ends after this time.
      wait: a message to print while waiting for another program that writes the store; '': raise.

    Returns:
      The manifest.

    Raises:
      ValueError: the folder contains other embeddings or something else, there is no batch, or an
        embedding is not finite or too large for float16.
      BlockingIOError: another program is writing the store.
      OSError: the disk is full, or the folder cannot be written.
    """
    if places.is_remote(folder):
        raise ValueError(f"{folder}: object storage has no locks: fill it in shards")
    with files.only_writer(folder, wait):
        manifest = begin(folder, source, dtype)
        if manifest["complete"]:
            return manifest
        files.remove(folder, KIND, LITTER)
        done = sum(shard["batches"] for shard in manifest["shards"])
        if done:
            print(f"{folder}: resuming after {manifest['count']} embeddings", file=sys.stderr)
        waiting: list[Embedded] = []
        skipped: list[str] = []
        start = time.monotonic()

        def write(parts, lines):
            append(folder, manifest, joined(parts), len(parts), lines)

        with Behind() as behind:
            for items, lines in rest(done):
                behind.check()
                waiting.append(items)
                skipped += lines
                late = time.monotonic() - start > shard_seconds
                if sum(map(len, waiting)) >= shard_rows or late:
                    behind.submit(write, waiting, skipped)
                    waiting, skipped, start = [], [], time.monotonic()
            if waiting:
                behind.submit(write, waiting, skipped)
        if not manifest["count"]:
            raise ValueError(f"{folder}: there is nothing to embed")
        finish(folder, manifest)
    return manifest


def begin(folder, source, dtype="float32") -> dict:
    """Returns the manifest to continue: a new one, or that of an interrupted run with this source.

    Raises:
      OtherSource: the folder contains other embeddings.
      ValueError: it contains something else.
    """
    path = os.path.join(folder, "manifest.json")
    if not os.path.exists(path):
        files.claim(folder, KIND)
        if os.path.exists(os.path.join(folder, PARTS)):
            raise ValueError(f"{folder}: is being filled in shards: give --shard=i/n, or --finish")
        return {"source": source, "dtype": dtype, "complete": False, "count": 0, "shards": []}
    manifest = _known(folder)
    check_source(folder, manifest, source, dtype)
    return manifest


def check_source(folder, known, source, dtype, ignored=()) -> None:
    """Raises OtherSource if a store has another source than the current run.

    Args:
      folder: the store.
      known: its manifest, or its plan if it is filled in parts.
      source, dtype: see `fill`.
      ignored: keys of the source that may differ.
    """
    changed = [k for k in source if k not in ignored and known["source"].get(k) != source[k]]
    if changed or known["dtype"] != dtype:
        changed = [*changed, "dtype"]
        what = "other images" if changed[0] == "images_sha256" else f"another {changed[0]}"
        raise OtherSource(
            f"{folder} contains embeddings of {what}: use another folder, or delete it"
        )


def append(folder, manifest, items: Embedded, batches, skipped=()):
    """Publishes one more shard.

    Args:
      folder: the store.
      manifest: the result of `begin`; it is updated.
      items: the rows of the shard.
      batches: the number of batches in it.
      skipped: a line per image of these batches that could not be read.
    """
    if manifest["shards"] and items.embeddings.shape[1] != manifest["dimensions"]:
        raise ValueError(f"{items.embeddings.shape[1]} dimensions after {manifest['dimensions']}")
    name = f"{len(manifest['shards']):05d}"
    shard = write_shard(places.at(folder), name, items, manifest["dtype"])
    manifest["dimensions"] = items.embeddings.shape[1]
    manifest["count"] += len(items)
    manifest["shards"].append(shard | {"batches": batches, "skipped": list(skipped)})
    _publish(folder, manifest)


def write_shard(place, name, items: Embedded, dtype) -> dict:
    """Writes the files of a shard.

    Args:
      place: place of the store, see `places.at`.
      name: name of the files, without suffix.
      items: the rows.
      dtype: 'float32' or 'float16'.

    Returns:
      {'name', 'count', 'sha256'} of the shard, for a manifest.

    Raises:
      ValueError: an embedding is not finite, or too large for float16.
    """
    from pyarrow import parquet  # a search does not need it

    with np.errstate(over="ignore"):
        values = np.asarray(items.embeddings, dtype)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        given = np.isfinite(items.embeddings[bad[0]]).all()
        what = "is too large for float16; use --dtype=float32" if given else "is not finite"
        raise ValueError(f"the embedding of {str(items.ids[bad[0]])!r} {what}")
    nothing = np.full(len(items), "")
    paths = nothing if items.paths is None else items.paths
    hashes = nothing if items.hashes is None else items.hashes
    columns = (items.ids, items.products, items.categories, paths, hashes)
    texts = {
        title: pyarrow.array(column.tolist(), pyarrow.string())
        for title, column in zip(COLUMNS, columns, strict=True)
    }
    sums = {}
    for kind, write in (
        ("npy", lambda out: np.save(out, values)),
        ("parquet", lambda out: parquet.write_table(pyarrow.table(texts), out)),
    ):
        with place.writing(f"{name}.{kind}") as out:
            write(out)
            out.flush()
            sums[kind] = files.sha256(out.name)
    return {"name": name, "count": len(items), "sha256": sums}


def finish(folder, manifest):
    """Marks a store as complete."""
    manifest["complete"] = True
    _publish(folder, manifest)


def discard(folder) -> None:
    """Removes a store, but keeps files of others in its folder."""
    files.discard(folder, KIND, rf"{FILES}|{LITTER}")


def _publish(folder, manifest):
    files.write_sealed(os.path.join(folder, "manifest.json"), manifest)


# ---------------------------------------------------------------------------- reading


def manifest_of(folder) -> dict:
    """Returns the manifest of a complete store; ValueError otherwise."""
    manifest = _known(folder)
    if not manifest["complete"]:
        raise ValueError(f"{folder}: is incomplete; run the same retrieval.embed again")
    return manifest


def is_complete(folder) -> bool:
    """Whether a folder contains a complete store."""
    path = places.at(folder).path("manifest.json")
    return os.path.exists(path) and _known(folder)["complete"]


def _known(folder):
    path = places.at(folder).path("manifest.json")
    if not os.path.exists(path):
        if places.at(folder).exists(PARTS):
            raise ValueError(f"{folder}: is being filled in shards; `embed --finish` completes it")
        raise ValueError(f"{folder}: is not a store of embeddings; make one with retrieval.embed")
    keys = {"source", "dtype", "complete", "count", "shards"}
    manifest = files.read_sealed(path, keys, "a store of embeddings")
    _check_shards(path, manifest)
    return manifest


def _check_shards(path, manifest):
    """Raises ValueError for a manifest with entries that `append` would not write."""
    shards, kinds = manifest["shards"], {"npy", "parquet"}
    whole = isinstance(shards, list) and isinstance(manifest["source"], dict)
    for shard in shards if whole else ():
        sums = shard.get("sha256") if isinstance(shard, dict) else None
        whole &= (
            isinstance(sums, dict)
            and sums.keys() == kinds
            and all(isinstance(shard.get(key), int) for key in ("count", "batches"))
            and isinstance(shard.get("skipped", []), list)
            and isinstance(shard.get("name"), str)
            and re.fullmatch(NAME, shard["name"], re.ASCII) is not None
        )
    if whole and shards:
        whole &= isinstance(manifest.get("dimensions"), int)
        whole &= manifest["count"] == sum(shard["count"] for shard in shards)
    if not whole:
        raise ValueError(f"{path}: is damaged: its shards are not those of retrieval.embed")


def shards(folder, verify=True, start=0, stop=None):
    """Yields (embeddings [n, D], memory-mapped, and a pyarrow.Table of COLUMNS) shard by shard.

    Args:
      folder: the store.
      verify: compare checksums first.
      start, stop: range of rows; shards outside of it are not read.

    Raises:
      ValueError: a missing, truncated or changed file.
    """
    manifest = manifest_of(folder)
    end = 0
    for shard in manifest["shards"]:
        first, end = end, end + shard["count"]
        if end <= start or (stop is not None and first >= stop):
            continue
        paths = {kind: _path_of(folder, shard, kind, verify) for kind in shard["sha256"]}
        table = _read_table(paths["parquet"])
        array = _array_of(manifest, paths["npy"])
        if len(array) != len(table):
            raise ValueError(
                f"{paths['parquet']}: names {len(table)} items for {len(array)} embeddings"
            )
        keep = slice(max(0, start - first), None if stop is None else max(0, stop - first))
        yield array[keep], table[keep]


def arrays(folder) -> list[np.ndarray]:
    """The embeddings [n, D] of every shard, memory-mapped; neither names nor checksums are read."""
    manifest = manifest_of(folder)
    return [_array_of(manifest, _path_of(folder, s, "npy", False)) for s in manifest["shards"]]


def _path_of(folder, shard, kind, verify):
    path = places.at(folder).path(f"{shard['name']}.{kind}")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: is missing from its store")
    if verify and files.sha256(path) != shard["sha256"][kind]:
        raise ValueError(f"{path}: is damaged (its checksum differs); embed again")
    return path


def _array_of(manifest, path):
    array = load_array(path)
    if array.shape[1:] != (manifest["dimensions"],) or array.dtype.kind != "f":
        raise ValueError(f"{path}: is {array.dtype} {list(array.shape)}, unlike its manifest")
    return array


def _read_table(path):
    """Reads COLUMNS of a Parquet file; ValueError if it is damaged."""
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        if "sha256" not in table.column_names:  # written by versions before 0.2
            nothing = pyarrow.array([""] * len(table), pyarrow.string())
            table = table.append_column("sha256", nothing)
        table = table.select(list(COLUMNS))
        if any(column.null_count for column in table.columns):
            raise ValueError("it holds empty cells")
        return table.cast(pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS]))
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a table that can be read: {reason}") from None


def read(folder, verify=True) -> Embedded:
    """Returns the whole store; a single shard stays memory-mapped. Ids must be unique."""
    parts = list(shards(folder, verify))
    if not parts:
        raise ValueError(f"{folder}: holds no embeddings")
    arrays, tables = zip(*parts, strict=True)
    embeddings = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    table = pyarrow.concat_tables(tables)
    ids, products, categories, paths, hashes = (
        np.array(table[name].to_pylist(), str) for name in COLUMNS
    )
    return Embedded(embeddings, ids, products, categories, paths=paths, hashes=hashes)
