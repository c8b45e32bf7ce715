"""An index built by several processes: train once, add parts, then merge or search them apart.

INDEX/parts/training.json       index kind and store, beside trained.faiss and queries.npy
INDEX/parts/00001-of-00004/     rows of one part, with ids in the whole: index.faiss, lists.ivfdata,
                                items.arrow, nearest.npy (the exact scores that tuning needs)

A part is published by one rename, so that if two processes build it, only one is kept. It can be
built on another machine from a copy of training.json, trained.faiss and queries.npy, and copied
back. `merge` publishes a version like any other, and then removes the parts.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys

import faiss
import numpy as np
import pyarrow

from retrieval.catalogue import index as whole_index
from retrieval.catalogue import inverted_lists, neighbours, reading, versions
from retrieval.catalogue.reading import ITEMS
from retrieval.catalogue.rows import Rows, checked
from retrieval.embeddings import store
from trainer import files

FOLDER = "parts"
KEYS = {"factory", "similarity", "dimensions", "weights", "count", "store", "store_id", "recall"}
KEYS |= {"why", "k", "sha256"}
FILES = ("index.faiss", inverted_lists.LISTS, "items.arrow", "nearest.npy")
_NAME = r"\d{5}-of-\d{5}"
_OURS = (
    rf"{FOLDER}/(training\.json|trained\.faiss|queries\.npy|\.[^/]+\.tmp"
    rf"|(\.?{_NAME}[^/]*/)(\.[^/]+/?|\.lock|part\.json|[^/]+\.(faiss|ivfdata|arrow|npy)"
    r"|\.blocks-\w+/(\d+\.faiss)?)?)"
)


def train(source, folder, factory="auto", *, similarity="cosine", memory=None, recall=0.95, k=10,
          queries=None, seed=0) -> dict:  # fmt: skip
    """Trains an index on a sample of a store, for parts to be added.

    Args:
      source, folder, similarity, recall, k, queries, seed: as in `index.build`.
      factory: a FAISS factory `IVF…`; 'auto': eight bits per dimension.
      memory: bytes that this process may take; None: half of the available memory.

    Returns:
      The contents of `INDEX/parts/training.json`.

    Raises:
      ValueError: the index is of another kind, there are parts of another training, or as in
        `index.build`.
    """
    origin = whole_index.filled(source)
    memory = memory or neighbours.free_memory() // 2
    with files.only_writer(folder):
        files.claim(folder, versions.KIND)
        if _parts(folder):
            raise ValueError(
                f"{folder}: holds parts of an earlier training: `index merge` them, or delete "
                f"{os.path.join(folder, FOLDER)}"
            )
        why = "asked for"
        if factory == "auto":
            factory = f"IVF{neighbours.lists_for(origin['count'])},SQ8"
            why = "inverted lists, which can be merged, of eight bits per dimension"
        made = neighbours.make(factory, origin["dimensions"], similarity)
        if not isinstance(faiss.downcast_index(made), faiss.IndexIVF):
            raise ValueError(f"--factory={factory}: has no inverted lists to merge; use IVF…")
        random = np.random.default_rng(seed)
        rows = Rows(store.arrays(source), similarity)
        most = neighbours.rows_within(memory, origin["dimensions"])
        whole_index.train(made, rows, factory, most, random)
        asking = whole_index.queries_of(queries, rows, np.arange(0), origin, random)
        os.makedirs(os.path.join(folder, FOLDER), exist_ok=True)
        with files.published(os.path.join(folder, FOLDER, "trained.faiss")) as out:
            faiss.write_index(made, out.name)
        with files.published(os.path.join(folder, FOLDER, "queries.npy")) as out:
            np.save(out, asking)
        about = {
            "factory": factory,
            "why": why,
            "similarity": similarity,
            "dimensions": origin["dimensions"],
            "weights": origin["source"].get("checkpoint_sha256"),
            "count": origin["count"],
            "store": os.path.abspath(source) if os.path.isdir(source) else os.fspath(source),
            "store_id": _identity(origin),
            "recall": recall,
            "k": min(k, origin["count"]),
            "sha256": {
                name: files.sha256(os.path.join(folder, FOLDER, name))
                for name in ("trained.faiss", "queries.npy")
            },
        }
        files.write_sealed(os.path.join(folder, FOLDER, "training.json"), about)
    return about


def _identity(manifest):
    """The identity of a store and its copies: the checksums of its files."""
    return [shard["sha256"]["npy"] for shard in manifest["shards"]]


def _training(folder):
    """The contents of training.json; ValueError if it is missing or damaged."""
    path = os.path.join(folder, FOLDER, "training.json")
    if not os.path.exists(path):
        raise ValueError(f"{folder}: nothing was trained here: run `index train` first")
    return files.read_sealed(path, KEYS, "a training")


def trained(folder) -> dict:
    """The trained index; ValueError if it is missing or damaged."""
    place, about = os.path.join(folder, FOLDER), _training(folder)
    for name, sum_ in about["sha256"].items():
        path = os.path.join(place, os.path.basename(name))
        if not os.path.isfile(path) or files.sha256(path) != sum_:
            raise ValueError(f"{path}: is missing or damaged: run `index train` again")
    return about


def add(source, folder, part, of, *, memory=None) -> dict:
    """Adds one part of a store's rows to an index that was trained on it.

    Args:
      source: the store, or a copy of it.
      folder: the index.
      part, of: number of the part, from 0, and number of parts.
      memory: bytes that this process may take; None: half of the available memory.

    Returns:
      {'start', 'stop', ...}, the contents of the part's part.json.

    Raises:
      ValueError: another store, another number of parts, or rows that cannot be searched.
      OSError: the disk is full.
    """
    about, origin = trained(folder), whole_index.filled(source)
    if _identity(origin) != about["store_id"]:
        raise ValueError(f"{source}: is not the store that {folder} was trained on")
    others = [name for name in _parts(folder) if not name.endswith(f"-of-{of:05d}")]
    if others:
        known = int(others[0][-5:])
        raise ValueError(
            f"{folder}: is being built in {known} parts, which {of} would overlap: give "
            f"--part=i/{known}"
        )
    count = origin["count"]
    start, stop = part * count // of, (part + 1) * count // of
    if start == stop:
        raise ValueError(f"--part={part}/{of}: is empty: {source} holds {count} items")
    name = f"{part:05d}-of-{of:05d}"
    target = os.path.join(folder, FOLDER, name)
    if os.path.exists(target):
        return _part(folder, name, about)
    memory = memory or neighbours.free_memory() // 2
    _remove_left(folder, name)
    mine = os.path.join(folder, FOLDER, f".{name}.{secrets.token_hex(6)}.tmp")
    with _scratch(mine):
        rows, items = checked(source, about["similarity"], start, stop)
        made = faiss.read_index(os.path.join(folder, FOLDER, "trained.faiss"))
        asking = np.load(os.path.join(folder, FOLDER, "queries.npy"), allow_pickle=False)
        nearest = [np.empty((len(asking), 0), np.float32)]
        size = neighbours.rows_within(memory, origin["dimensions"])
        if size < 1024:
            print(
                f"warning: --memory={memory / 2**30:g}: the program and the names of {len(items)} "
                "items exceed it; use more parts, which are smaller",
                file=sys.stderr,
            )

        def blocks():
            for block in rows.blocks(np.arange(len(rows)), size):
                near = min(about["k"], len(block))
                scores, found = neighbours.nearest(asking, [block], near, about["similarity"])
                nearest[0] = neighbours.best(
                    np.hstack([nearest[0], scores]), np.hstack([nearest[0], found]), about["k"]
                )[0]
                yield block

        with _one_line(mine):
            made = inverted_lists.write(made, blocks(), mine, first=start)
            faiss.write_index(made, os.path.join(mine, "index.faiss"))
        with pyarrow.ipc.new_file(os.path.join(mine, "items.arrow"), ITEMS) as out:
            out.write_table(items)
        np.save(os.path.join(mine, "nearest.npy"), nearest[0])
        for each in FILES:
            files.sync(os.path.join(mine, each))
        value = {
            "start": start,
            "stop": stop,
            "training": about["sha256"]["trained.faiss"],
            "sha256": {each: files.sha256(os.path.join(mine, each)) for each in FILES},
        }
        files.write_sealed(os.path.join(mine, "part.json"), value)
        try:
            os.rename(mine, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    return _part(folder, name, about)


@contextlib.contextmanager
def _scratch(path):
    """A temporary folder of this process, removed at the end unless it was renamed."""
    with files.only_writer(path):
        try:
            yield
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _one_line(path):
    """Turns FAISS's errors about files into an OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(
            errno.EIO, f"cannot be written: {str(error).splitlines()[-1]}", path
        ) from None


def _remove_left(folder, name):
    """Removes what a killed process left of a part."""
    place = os.path.join(folder, FOLDER)
    for left in os.listdir(place):
        path = os.path.join(place, left)
        if re.fullmatch(rf"\.{name}\.[0-9a-f]{{12}}\.tmp", left) and not files.locked(path):
            shutil.rmtree(path, ignore_errors=True)


def _parts(folder):
    """Names of the parts of an index, in order."""
    place = os.path.join(folder, FOLDER)
    found = os.listdir(place) if os.path.isdir(place) else []
    return sorted(name for name in found if re.fullmatch(_NAME, name))


def _part(folder, name, about):
    """The contents of part.json; ValueError if the part is of another training."""
    path = os.path.join(folder, FOLDER, name, "part.json")
    value = files.read_sealed(path, {"start", "stop", "training", "sha256"}, "a part")
    if value["training"] != about["sha256"]["trained.faiss"]:
        raise ValueError(
            f"{os.path.dirname(path)}: is a part of another training: delete it and add it again"
        )
    return value


def merge(folder, source=None, apart=False) -> dict:
    """Publishes the parts as one version of the index.

    Args:
      folder: the index.
      source: the store, if it was moved since `train`.
      apart: do not merge the parts; a search then merges the results of each.

    Returns:
      The manifest.

    Raises:
      ValueError: a part is missing, damaged or of another training; nothing is changed.
      BlockingIOError: another process is changing the index.
      OSError: the disk is full.
    """
    with files.only_writer(folder):
        current, found = _current(folder), _parts(folder)
        done = current and current[1].get("training")
        begun = os.path.exists(os.path.join(folder, FOLDER, "training.json"))
        same = begun and _training(folder)["sha256"]["trained.faiss"] == done
        if done and (same or not (begun or found)):
            _remove(folder)  # left by a killed merge
            return current[1]
        about = trained(folder)
        training = about["sha256"]["trained.faiss"]
        folders, values = _checked_parts(folder, found, about)
        source = source or about["store"]
        if _identity(store.manifest_of(source)) != about["store_id"]:
            raise ValueError(f"{source}: is not the store that {folder} was trained on")
        rows = Rows(store.arrays(source), about["similarity"])
        read = [inverted_lists.read(os.path.join(path, "index.faiss")) for path in folders]
        asking = np.load(os.path.join(folder, FOLDER, "queries.npy"), allow_pickle=False)
        nearest = np.hstack([np.load(os.path.join(path, "nearest.npy")) for path in folders])
        truth = -np.sort(-nearest, axis=1)[:, : about["k"]]
        items = pyarrow.concat_tables(reading.read_items(path) for path in folders)
        _check_unique(items)
        with versions.following(folder) as path:
            made = inverted_lists.Stacked(read)
            if apart:
                _link(folders, path)
            else:
                made = inverted_lists.write(made, [], path)
            tuned = whole_index.tune(
                made, rows, np.arange(len(rows)), asking, truth, about["recall"]
            )
            keys = ("factory", "why", "similarity", "dimensions", "weights")
            manifest = {key: about[key] for key in keys}
            manifest |= {"on_disk": True, "tuned": tuned, "training": training}
            if current and current[1]["weights"] == about["weights"]:
                whole_index.keep_model(current[0], path)
            manifest = whole_index.write(path, made, items, manifest)
        _remove(folder)
    return manifest


def _current(folder):
    try:
        return reading.current(folder)
    except ValueError:
        return None


def _checked_parts(folder, found, about):
    """(folders, values) of all parts, in order; ValueError if one is missing or damaged."""
    counts = sorted({int(name[-5:]) for name in found})
    if len(counts) > 1:
        raise ValueError(
            f"{folder}: holds parts of {counts[0]} and of {counts[1]}, which overlap: delete those "
            f"of one number in {os.path.join(folder, FOLDER)}"
        )
    of = counts[0] if counts else 1
    there = {int(name[:5]) for name in found}
    missing = [n for n in range(of) if n not in there]
    if missing:
        named = ", ".join(f"{n}/{of}" for n in missing[:5]) + " …" * (len(missing) > 5)
        raise ValueError(
            f"{folder}: {len(missing)} of {of} parts missing: {named}; add it with "
            f"--part={missing[0]}/{of}"
        )
    values, end = [], 0
    for name in found:
        path, value = os.path.join(folder, FOLDER, name), _part(folder, name, about)
        for file, sum_ in value["sha256"].items():
            at = os.path.join(path, os.path.basename(file))
            if not os.path.isfile(at) or files.sha256(at) != sum_:
                raise ValueError(f"{at}: is missing or damaged: delete {path} and add it again")
        if value["start"] != end:
            raise ValueError(f"{path}: starts at row {value['start']}, not {end}: add it again")
        end = value["stop"]
        values.append(value)
    if end != about["count"]:
        raise ValueError(f"{folder}: its parts hold {end} of {about['count']} items")
    return [os.path.join(folder, FOLDER, name) for name in found], values


def _check_unique(items):
    """Raises ValueError for an id that occurs in two parts; `add` checks within a part."""
    chunks = items["id"].chunks
    hashes = np.concatenate([_hashes(chunk) for chunk in chunks])
    ordered = np.sort(hashes)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(suspects):
        return
    seen = set()
    for chunk in chunks:
        among = pyarrow.array(np.isin(_hashes(chunk), suspects))
        for name in chunk.filter(among).to_pylist():
            if name in seen:
                raise ValueError(f"id {name!r} occurs twice: its rows are in two parts")
            seen.add(name)


def _hashes(names):
    """uint64 [n], a hash of each text: eight bytes instead of the text."""
    made = (hashlib.blake2b(n.encode(), digest_size=8).digest() for n in names.to_pylist())
    return np.frombuffer(b"".join(made), np.uint64)


def _link(folders, path):
    """Links the files of the parts into a version."""
    for number, folder in enumerate(folders):
        target = os.path.join(path, f"part-{number:05d}")
        os.makedirs(target)
        for name in ("index.faiss", inverted_lists.LISTS):
            files.link(os.path.join(folder, name), os.path.join(target, name))


def _remove(folder):
    """Removes the training and the parts, which are now in a version."""
    # The training is removed last: as long as it exists, `merge` completes the removal.
    for pattern in (rf"(?!{FOLDER}/training\.json){_OURS}", _OURS):
        files.remove(folder, versions.KIND, pattern)
    with contextlib.suppress(OSError):  # keeps files of others
        os.rmdir(os.path.join(folder, FOLDER))
