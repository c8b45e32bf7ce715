"""A catalogue of embeddings in a FAISS index: build, add, remove, search, verify.

INDEX/versions/<n> holds index.faiss, items.arrow, manifest.json, the SavedModel that embeds queries
(`model`) and, for an index larger than memory, its inverted lists, lists.ivfdata. They are
published together, so that index and model cannot be mixed (see `retrieval.catalogue.versions`).
Removed items stay in the FAISS file and every search skips them, which works for all kinds of
index; `build` again to shrink it.

FAISS does not validate the files it reads. Open only indexes that you built: the checksums detect
damage and mix-ups, not manipulation.
"""

import os
import shutil
import sys

import faiss
import numpy as np
import pyarrow
from pyarrow import compute

from retrieval.catalogue import inverted_lists, neighbours, reading, versions
from retrieval.catalogue.opened import Catalogue
from retrieval.catalogue.reading import ITEMS, MODEL, manifest_of
from retrieval.catalogue.rows import checked
from retrieval.embeddings import store
from trainer import files

__all__ = ["Catalogue", "add", "build", "history", "manifest_of", "remove", "rollback"]

BLOCK = 65536  # rows added at a time
HELD_OUT = 500  # items for tuning, which are added afterwards


def build(source, folder, factory="auto", *, similarity="cosine", memory=None, recall=0.95, k=10,
          on_disk=False, queries=None, seed=0, save_model=None):  # fmt: skip
    """Builds an index from a store, in blocks. Earlier versions are kept.

    The search effort is tuned to the requested recall for queries that are not in the index: the
    given queries or, without them, items that are added only after tuning. The lower end of a 95%
    interval must reach the recall.

    Args:
      source: folder of a store.
      folder: the index; new, empty, or an index.
      factory: a FAISS factory, or 'auto' for the most exact kind that fits into memory.
      similarity: 'cosine', 'dot' or 'euclidean'.
      memory: bytes that the index may take; None: half of the available memory.
      recall: fraction of the k nearest items that a search must find.
      k: number of neighbors for the recall.
      on_disk: keep the inverted lists of `factory` in a file; 'auto' decides this itself.
      queries: folder of a store of real queries to tune with.
      seed: seed of random choices.
      save_model: `Embedder.save` of the model that made the store, to save the model in the index;
        None for an index that is searched only with stored embeddings.

    Returns:
      The manifest.

    Raises:
      ValueError: the factory is unknown, embeddings cannot be searched, ids occur twice, memory is
        too small, or the folder is not an index.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"--recall={recall:g}: takes a fraction above 0, up to 1")
    if memory is not None and not memory > 0:
        raise ValueError(f"--memory={memory / 2**30:g}: takes a number above 0")
    origin = filled(source)
    dimensions, count = origin["dimensions"], origin["count"]
    memory, why = memory or neighbours.free_memory() // 2, "asked for"
    with files.only_writer(folder):
        files.claim(folder, versions.KIND)
        if factory == "auto":
            disk = shutil.disk_usage(folder).free
            factory, on_disk, why = neighbours.choose(count, dimensions, memory, recall, disk)
        random = np.random.default_rng(seed)
        index = neighbours.make(factory, dimensions, similarity)
        if on_disk and not isinstance(faiss.downcast_index(index), faiss.IndexIVF):
            raise ValueError(
                f"--factory={factory}: has no inverted lists to keep on disk; use IVF…"
            )
        rows, items = checked(source, similarity)
        train(index, rows, factory, memory // (16 * dimensions), random)
        held = _sample(random, count, min(HELD_OUT, count // 10))
        if on_disk or queries:
            held = held[:0]
        with versions.following(folder) as path:
            kept = np.setdiff1d(np.arange(count), held)
            if on_disk:
                block = memory // (16 * dimensions)
                index = inverted_lists.write(index, rows.blocks(kept, block), path)
            else:
                for block in rows.blocks(kept, BLOCK):
                    index.add(block)
            asking = queries_of(queries, rows, held, origin, random)
            near = min(k, len(kept))
            truth = neighbours.nearest(asking, rows.blocks(kept, BLOCK), near, similarity)[0]
            tuned = tune(index, rows, kept, asking, truth, recall)
            for block in rows.blocks(held, BLOCK):
                index.add(block)
            manifest = {
                "factory": factory,
                "why": why,
                "on_disk": on_disk,
                "similarity": similarity,
                "dimensions": dimensions,
                "weights": origin["source"].get("checkpoint_sha256"),
                "tuned": tuned,
            }
            if save_model:
                save_model(os.path.join(path, MODEL))
            return write(path, index, items.take(np.concatenate([kept, held])), manifest)


def train(index, rows, factory, most, random) -> None:
    """Trains an index of a factory on a sample of about `most` rows, if it needs training.

    Raises:
      ValueError: FAISS cannot train it, add to it, or skip items in a search.
    """
    if not index.is_trained:
        wanted = 64 * getattr(neighbours.core(index), "nlist", 1024) + 4096
        wanted = min(wanted, max(4096, most))
        some = rows[_sample(random, len(rows), wanted)]
        print(f"training {factory} on {len(some)} of {len(rows)} items", file=sys.stderr)
        neighbours.train(index, some, factory, rows.similarity)
    neighbours.check(index, neighbours.prepare(rows[np.arange(1)], rows.similarity), factory)


def filled(source) -> dict:
    """The manifest of a store; ValueError if it holds nothing."""
    manifest = store.manifest_of(source)
    if not manifest["count"]:
        raise ValueError(f"{source}: holds no embeddings: there is nothing to index")
    return manifest


def _sample(random, count, wanted):
    return np.sort(random.choice(count, min(count, wanted), replace=False))


def queries_of(queries, rows, held, origin, random) -> np.ndarray:
    """Queries for tuning, float32 [Q, D]: real ones, held-out items, or items plus 10% noise."""
    if queries:
        weights = store.manifest_of(queries)["source"].get("checkpoint_sha256")
        if weights != origin["source"].get("checkpoint_sha256"):
            raise ValueError(f"--queries={queries} was embedded with other weights than the store")
        found = store.read(queries).embeddings
        if found.shape[1] != rows.parts[0].shape[1]:
            raise ValueError(f"--queries={queries}: has {found.shape[1]} dimensions")
        return np.asarray(found[_sample(random, len(found), 2000)], np.float32)
    if len(held):
        return rows[held]
    some = rows[_sample(random, len(rows), HELD_OUT)]
    return neighbours.moved(some, rows.similarity, random)


def tune(index, rows, kept, queries, truth, recall) -> dict:
    """The manifest's entry about search effort; the index contains the `kept` rows.

    Args:
      index: a FAISS index.
      rows: `Rows` of its store.
      kept: int64 [N], the store's row for each row of the index.
      queries: float32 [Q, D] for tuning.
      truth: float32 [Q, k], scores of the nearest items.
      recall: the requested recall.
    """
    similarity, near = rows.similarity, truth.shape[1]

    def exact(found):
        """Exact scores [Q, k] of rows of the index; -inf for -1."""
        there = np.unique(found[found >= 0])
        items = neighbours.prepare(rows[kept[there]], similarity)
        at = np.searchsorted(there, np.maximum(found, there[0] if len(there) else 0))
        scores = neighbours.pair_scores(queries, items, at, similarity)
        return np.where(found < 0, -np.inf, scores)

    tuned = neighbours.tune(index, queries, truth, exact, recall, similarity, near)
    return {**tuned, "asked": recall, "k": near, "num_queries": len(queries)}


def add(source, folder):
    """Adds the items of a store to an index; an item with an existing id replaces the old one.

    Returns:
      The manifest of the new version.

    Raises:
      ValueError: weights or dimensions differ from the index's.
    """
    origin = filled(source)
    with files.only_writer(folder), Catalogue.open(folder) as old:
        index, items, manifest = old.index, old.items, old.manifest
        old.check_weights(origin["source"].get("checkpoint_sha256"), source)
        if origin["dimensions"] != manifest["dimensions"]:
            raise ValueError(
                f"{source} has {origin['dimensions']} dimensions; the index takes "
                f"{manifest['dimensions']}"
            )
        rows, new = checked(source, manifest["similarity"])
        items = pyarrow.concat_tables([_without(items, new["id"]), new])
        blocks = rows.blocks(np.arange(origin["count"]), BLOCK)
        with versions.following(folder) as path:
            if manifest["on_disk"]:
                index = inverted_lists.write(index, blocks, path)
            else:
                for block in blocks:
                    index.add(block)
            keep_model(old.folder, path)
            return write(path, index, items, manifest)


def remove(ids, folder):
    """Removes items by id.

    Returns:
      The manifest of the new version.

    Raises:
      ValueError: an id is not in the index, which is then unchanged.
    """
    with files.only_writer(folder), Catalogue.open(folder) as old:
        index, items, manifest = old.index, old.items, old.manifest
        ids = pyarrow.array(ids, ITEMS.field("id").type)
        there = items["id"].filter(items["alive"])
        missing = ids.filter(compute.invert(compute.is_in(ids, there)))
        if len(missing):
            raise ValueError(
                f"id {missing[0].as_py()!r} is not in {folder} ({len(missing)} such ids)"
            )
        items = _without(items, ids)
        with versions.following(folder) as path:
            if manifest["on_disk"]:
                index = inverted_lists.write(index, [], path)
            keep_model(old.folder, path)
            return write(path, index, items, manifest)


def _without(items, ids):
    """The items, with those of the given ids marked as removed."""
    gone = compute.is_in(items["id"], ids)
    alive = compute.and_not(items["alive"], gone)
    return items.set_column(ITEMS.get_field_index("alive"), "alive", alive)


def rollback(folder, number):
    """Makes an earlier version the current one again.

    Returns:
      Its manifest.

    Raises:
      ValueError: there is no such version, or it is damaged; the current version stays.
    """
    with files.only_writer(folder):
        versions.current(folder)
        known = versions.numbers(folder)
        if number not in known:
            raise ValueError(
                f"--to={number}: {folder} has the versions {', '.join(map(str, known))}"
            )
        path = os.path.join(folder, "versions", f"{number:06d}")
        manifest = reading.manifest_in(path)
        reading.check_files(folder, path, manifest, everything=False)
        reading.read(path, manifest)
        versions.publish(folder, number)
    return manifest


def history(folder):
    """Returns [(manifest, whether it is current)] of the complete versions, oldest first."""
    current = os.path.basename(versions.current(folder))
    names = [f"{number:06d}" for number in versions.numbers(folder)]
    return [(reading.manifest_in(os.path.join(folder, "versions", n)), n == current) for n in names]


def _files_below(path):
    """Yields the paths of the files in a folder, relative to it, with '/'."""
    for at, _, names in os.walk(path):
        yield from (os.path.relpath(os.path.join(at, n), path).replace(os.sep, "/") for n in names)


def keep_model(old, new) -> None:
    """Gives a version the model of an earlier one."""
    for name in _files_below(os.path.join(old, MODEL)):
        source, target = (os.path.join(version, MODEL, name) for version in (old, new))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        files.link(source, target)


def write(path, index, items, manifest) -> dict:
    """Writes the files of a version and returns its manifest."""
    manifest = {name: value for name, value in manifest.items() if name != "parts"}
    if isinstance(index, inverted_lists.Stacked):  # its parts have been linked there
        manifest["parts"] = len(index.parts)
    faiss.write_index(inverted_lists.saved(index), os.path.join(path, "index.faiss"))
    with pyarrow.ipc.new_file(os.path.join(path, "items.arrow"), ITEMS) as out:
        out.write_table(items)
    names = sorted(_files_below(path))
    for name in names:  # FAISS does not
        files.sync(os.path.join(path, name))
    sizes = {name: os.path.getsize(os.path.join(path, name)) for name in names}
    vectors_in = sum(size for name, size in sizes.items() if name.endswith(inverted_lists.ENDS))
    manifest = manifest | {
        "version": int(os.path.basename(path)),
        "count": (alive := compute.sum(items["alive"]).as_py()),
        "removed": len(items) - alive,
        "bytes_per_vector": vectors_in / max(1, index.ntotal),
        "bytes": sizes,
        "sha256": {name: files.sha256(os.path.join(path, name)) for name in names},
    }
    files.write_sealed(os.path.join(path, "manifest.json"), manifest)
    return manifest
