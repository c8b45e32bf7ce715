"""A catalogue index on FAISS: build, add, remove, search, verify.

INDEX/current names a version; INDEX/versions/<n> holds index.faiss, items.arrow, manifest.json and,
for an index above the memory, its inverted lists, lists.ivfdata. A version is published by one
rename of `current`, so that readers see the old or the new one, whole; the last three are kept.
Removed items stay in the FAISS file and are left out of every search, which works for all kinds of
index; `build` anew to be rid of them.

FAISS trusts the files it reads. Load only indexes that you built: the checksums tell damage and
mix-ups, not malice.
"""

import os
import shutil
import sys

import faiss
import numpy as np
import pyarrow
from pyarrow import compute

from retrieval import progress
from retrieval.catalogue import inverted_lists, neighbours, versions
from retrieval.embeddings import store
from retrieval.ranking import vectors
from trainer import files

BLOCK = 65536  # rows added at a time
ITEMS = pyarrow.schema(
    # large: the texts of one column may take more than 2 GiB.
    [*((name, pyarrow.large_string()) for name in store.COLUMNS), ("alive", pyarrow.bool_())]
)


def build(source, folder, factory="auto", *, similarity="cosine", memory=None, recall=0.95, k=10,
          on_disk=False, seed=0):  # fmt: skip
    """Builds an index from a store, in blocks; its manifest. Earlier versions are kept.

    memory: bytes, half of what is free if None. on_disk: keep the inverted lists of `factory` in a
    file, of which searching reads what it needs; auto decides that itself.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"--recall={recall:g}: takes a share above 0, up to 1")
    if memory is not None and not memory > 0:
        raise ValueError(f"--memory={memory / 2**30:g}: takes a number above 0")
    origin = _filled(source)
    dimensions, count = origin["dimensions"], origin["count"]
    memory, why = memory or neighbours.free_memory() // 2, "asked for"
    with files.only_writer(folder):
        if factory == "auto":
            disk = shutil.disk_usage(folder).free
            factory, on_disk, why = neighbours.choose(count, dimensions, memory, recall, disk)
        random = np.random.default_rng(seed)
        index = neighbours.make(factory, dimensions, similarity)
        if on_disk and not isinstance(faiss.downcast_index(index), faiss.IndexIVF):
            raise ValueError(f"--index={factory}: has no inverted lists to keep on disk; IVF… has")
        parts, items = _open(source, similarity)
        starts = np.cumsum([0, *(len(part) for part in parts)])
        if not index.is_trained:
            wanted = 64 * getattr(neighbours.core(index), "nlist", 1024) + 4096
            wanted = min(wanted, max(4096, memory // (16 * dimensions)))
            rows = _gather(parts, starts, _sample(random, count, wanted))
            print(f"training {factory} on {len(rows)} of {count} items", file=sys.stderr)
            neighbours.train(index, rows, factory, similarity)
        neighbours.check(index, neighbours.prepare(parts[0][:1], similarity), factory)
        manifest = {
            "factory": factory,
            "why": why,
            "on_disk": on_disk,
            "similarity": similarity,
            "dimensions": dimensions,
            "weights": origin["source"].get("checkpoint_sha256"),
        }
        blocks = _blocks(parts, similarity, memory // (16 * dimensions) if on_disk else BLOCK)
        with versions.following(folder) as path:
            if on_disk:
                index = inverted_lists.write(index, blocks, path)
            else:
                for block in blocks:
                    index.add(block)
            some = _gather(parts, starts, _sample(random, count, 500))
            queries = neighbours.moved(some, similarity, random)
            near = min(k, count)
            everything = progress.track(parts, len(parts), "true neighbours", len)
            truth = neighbours.nearest(queries, everything, near, similarity)[1]
            tuned = neighbours.tune(index, queries, truth, recall, similarity, near)
            manifest["tuned"] = {**tuned, "asked": recall, "k": near}
            return _write(path, index, items, manifest)


def _filled(source):
    manifest = store.manifest_of(source)
    if not manifest["count"]:
        raise ValueError(f"{source}: holds no embeddings: there is nothing to index")
    return manifest


def _open(source, similarity):
    """A store's embeddings, a list of arrays [n, D], and its items, an ITEMS table, all alive.

    ValueError for a row that cannot be searched, and for an id that occurs twice.
    """
    parts, tables = [], []
    for part, table in store.shards(source):
        vectors.Vectors(part, similarity, f"{source}, around {table['id'][0].as_py()!r}")
        parts.append(part)
        tables.append(table.append_column("alive", [np.ones(len(part), bool)]))
    items = pyarrow.concat_tables(tables).cast(ITEMS)
    if len(compute.unique(items["id"])) < len(items):
        counts = compute.value_counts(items["id"])
        twice = counts.filter(compute.greater(counts.field("counts"), 1))[0]["values"]
        raise ValueError(f"{source}: id {twice.as_py()!r} occurs twice")
    return parts, items


def _blocks(parts, similarity, rows):
    """Yields the embeddings of parts as FAISS takes them, at most so many rows at a time."""
    rows = max(1024, rows)
    cuts = [part[i : i + rows] for part in parts for i in range(0, len(part), rows)]
    for cut in progress.track(cuts, len(cuts), "items", len):
        yield neighbours.prepare(cut, similarity)


def _sample(random, count, wanted):
    return np.sort(random.choice(count, min(count, wanted), replace=False))


def _gather(parts, starts, rows):
    """Embeddings of rows (ascending) of the whole store."""
    found = []
    for part, start, end in zip(parts, starts, starts[1:], strict=False):
        inside = rows[(rows >= start) & (rows < end)] - start
        found.append(np.asarray(part[inside], np.float32))
    return np.concatenate(found)


def add(source, folder):
    """Adds the items of a store; an item whose id is there already is replaced."""
    origin = _filled(source)
    with files.only_writer(folder):
        index, items, manifest = load(folder)
        check_weights(manifest, origin, source)
        if origin["dimensions"] != manifest["dimensions"]:
            raise ValueError(
                f"{source} has {origin['dimensions']} dimensions; the index takes "
                f"{manifest['dimensions']}"
            )
        parts, new = _open(source, manifest["similarity"])
        items = pyarrow.concat_tables([_without(items, new["id"]), new])
        blocks = _blocks(parts, manifest["similarity"], BLOCK)
        with versions.following(folder) as path:
            if manifest["on_disk"]:
                index = inverted_lists.write(index, blocks, path)
            else:
                for block in blocks:
                    index.add(block)
            return _write(path, index, items, manifest)


def remove(ids, folder):
    """Removes items by id; ValueError, with nothing changed, where one is not there."""
    with files.only_writer(folder):
        index, items, manifest = load(folder)
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
            return _write(path, index, items, manifest)


def _without(items, ids):
    """The items, those of the given ids no longer alive."""
    gone = compute.is_in(items["id"], ids)
    alive = compute.and_not(items["alive"], gone)
    return items.set_column(ITEMS.get_field_index("alive"), "alive", alive)


def find(loaded, queries, k=10, category=None):
    """Searches a loaded index: (scores [Q, k], rows [Q, k] of its items; -1 beyond the last).

    loaded: as `load` returns it. category: consider only its items.
    """
    index, items, manifest = loaded
    if k < 1:
        raise ValueError(f"--k={k}: takes a number from 1 on")
    queries = np.asarray(queries)
    if queries.ndim != 2 or queries.shape[1] != manifest["dimensions"]:
        raise ValueError(
            f"queries are {list(queries.shape)}; the index takes [rows, {manifest['dimensions']}]"
        )
    vectors.Vectors(queries, manifest["similarity"], "queries")
    wanted, share = None, 1.0
    if manifest["removed"] or category is not None:
        wanted = items["alive"]
        if category is not None:
            wanted = compute.and_(wanted, compute.equal(items["category"], category))
            if not compute.any(wanted).as_py():
                raise ValueError(f"no item of the index is of category {category!r}")
        wanted = wanted.to_numpy()
        share = wanted.mean() or 1.0
    value = manifest["tuned"]["effort"]
    if value is not None:
        # More results, or results of which some are filtered out, lie farther away.
        more = max(1, k / manifest["tuned"]["k"]) / share
        value = min(np.ceil(value * more), neighbours.most(index))
    selector = None
    if wanted is not None:
        bits = np.packbits(wanted, bitorder="little")  # to outlive the search: FAISS copies none
        selector = faiss.IDSelectorBitmap(len(wanted), faiss.swig_ptr(bits))
    parameters = neighbours.effort(index, value, selector)
    return neighbours.search(index, queries, k, manifest["similarity"], parameters)


def check_weights(manifest, origin, source):
    """Refuses embeddings of other weights than the index's."""
    weights = origin["source"].get("checkpoint_sha256")
    if manifest["weights"] != weights:
        raise ValueError(
            f"{source} was embedded with other weights than the index: embed it with "
            f"the checkpoint of {str(manifest['weights'])[:12]}, or build the index anew"
        )


def load(folder, everything=False):
    """(FAISS index, items, manifest) of the current version.

    items: a pyarrow.Table as ITEMS says, whose row i is of row i of the index; memory-mapped, so
    that names take no memory before they are asked for.

    Checksums of all files are compared; of lists on disk only if everything, otherwise their size.
    Raises ValueError for a folder without an index, and for damaged or foreign files.
    """
    version, manifest = _current(folder)
    for name, checksum in manifest["sha256"].items():
        path = os.path.join(version, name)
        if not os.path.exists(path):
            raise ValueError(f"{path}: is missing from its index")
        damaged = os.path.getsize(path) != manifest["bytes"][name]
        if not damaged and (name != inverted_lists.LISTS or everything):
            damaged = files.sha256(path) != checksum
        if damaged:
            raise ValueError(
                f"{path}: is damaged (checksum differs); write an older version's number, of "
                f"{', '.join(sorted(os.listdir(os.path.dirname(version))))}, to {folder}/current"
            )
    items = pyarrow.ipc.open_file(pyarrow.memory_map(os.path.join(version, "items.arrow")))
    items = items.read_all()
    if items.schema != ITEMS:
        raise ValueError(f"{version}: was written by another version of this program: build anew")
    read = inverted_lists.read if manifest["on_disk"] else faiss.read_index
    index = read(os.path.join(version, "index.faiss"))
    if index.d != manifest["dimensions"] or index.ntotal != len(items):
        raise ValueError(f"{version}: index and items do not belong together")
    return index, items, manifest


def manifest_of(folder) -> dict:
    """The manifest of the current version, which tells of an index without reading it."""
    return _current(folder)[1]


def _current(folder):
    """(folder, manifest) of the current version."""
    version = versions.current(folder)
    keys = {"factory", "on_disk", "similarity", "dimensions", "weights", "tuned", "version"}
    keys |= {"count", "removed", "bytes_per_vector", "bytes", "sha256"}
    return version, files.known_keys(os.path.join(version, "manifest.json"), keys, "an index")


def _write(path, index, items, manifest):
    """Writes the files of a version and returns its manifest."""
    faiss.write_index(index, os.path.join(path, "index.faiss"))
    with pyarrow.ipc.new_file(os.path.join(path, "items.arrow"), ITEMS) as out:
        out.write_table(items)
    names = sorted(os.listdir(path))
    for name in names:  # FAISS does not
        with open(os.path.join(path, name), "rb+") as data:
            os.fsync(data.fileno())
    sizes = {name: os.path.getsize(os.path.join(path, name)) for name in names}
    vectors_in = sum(size for name, size in sizes.items() if name != "items.arrow")
    manifest = manifest | {
        "version": int(os.path.basename(path)),
        "count": (alive := compute.sum(items["alive"]).as_py()),
        "removed": len(items) - alive,
        "bytes_per_vector": vectors_in / max(1, index.ntotal),
        "bytes": sizes,
        "sha256": {name: files.sha256(os.path.join(path, name)) for name in names},
    }
    files.write_json(os.path.join(path, "manifest.json"), manifest)
    return manifest


# ---------------------------------------------------------------------------- command line
