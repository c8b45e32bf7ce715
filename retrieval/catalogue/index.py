"""A catalogue of embeddings in a FAISS index: build, add, remove, search, verify.

INDEX/versions/<n> holds index.faiss, items.arrow, manifest.json and, for an index larger than the
memory, its inverted lists, lists.ivfdata. See `retrieval.catalogue.versions` for how a version is
published. Removed items stay in the FAISS file and are skipped by every search, which works for all
kinds of index; `build` again to shrink it.

FAISS trusts the files it reads. Open only indexes that you built: the checksums detect damage and
mix-ups, not malice.
"""

import os
import shutil
import sys
from dataclasses import dataclass

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
HELD_OUT = 500  # items that an index is tuned with before they are added
ITEMS = pyarrow.schema(
    # large: the texts of one column may take more than 2 GiB.
    [*((name, pyarrow.large_string()) for name in store.COLUMNS), ("alive", pyarrow.bool_())]
)
KEYS = {"factory", "on_disk", "similarity", "dimensions", "weights", "tuned", "version"}
KEYS |= {"count", "removed", "bytes_per_vector", "bytes", "sha256"}


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      scores: float32 [Q, k], best first; larger is nearer. -inf beyond the last item found.
      rows: int64 [Q, k], rows of `Catalogue.items`; -1 beyond the last.
    """

    scores: np.ndarray
    rows: np.ndarray


class Catalogue:
    """An index and its items, opened as one object. Safe to search from several threads.

    Attributes:
      items: pyarrow.Table of `ITEMS`; row i is of row i of the index. Memory-mapped, so that names
        take no memory before they are read.
      manifest: dict, what the index is and how it was tuned.
      version: int, the number of this version.
    """

    items: pyarrow.Table
    manifest: dict
    version: int

    def __init__(self, index, items, manifest):
        """Internal; use `open`."""
        self.index, self.items, self.manifest = index, items, manifest
        self.version = manifest["version"]

    @classmethod
    def open(cls, folder: str | os.PathLike, everything: bool = False) -> "Catalogue":
        """Opens the current version of an index.

        Args:
          folder: the index.
          everything: also compare the checksum of lists on disk; otherwise only their size.

        Raises:
          ValueError: not an index, or damaged or foreign files.
        """
        version, manifest = _current(folder)
        _check_files(folder, version, manifest, everything)
        index, items = _read(version, manifest)
        return cls(index, items, manifest)

    def find(self, vectors_: np.ndarray, k: int = 10, category: str | None = None) -> Found:
        """Searches for the nearest items.

        Args:
          vectors_: float [Q, D], the queries' embeddings.
          k: number of results per query.
          category: consider only its items.

        Raises:
          ValueError: vectors that do not fit, k below 1, or a category without items.
        """
        if k < 1:
            raise ValueError(f"--k={k}: takes a number from 1 on")
        if k > max(self.manifest["count"], 1000):
            raise ValueError(f"--k={k}: the index holds {self.manifest['count']} items")
        queries = np.asarray(vectors_)
        if queries.ndim != 2 or queries.shape[1] != self.manifest["dimensions"]:
            raise ValueError(
                f"queries are {list(queries.shape)}; the index takes "
                f"[rows, {self.manifest['dimensions']}]"
            )
        similarity = self.manifest["similarity"]
        vectors.Vectors(queries, similarity, "queries")
        wanted, share = self._wanted(category)
        selector = None
        if wanted is not None:
            bits = np.packbits(wanted, bitorder="little")  # FAISS copies none: must outlive it
            selector = faiss.IDSelectorBitmap(len(wanted), faiss.swig_ptr(bits))
        parameters = neighbours.served(self.index, self.manifest["tuned"], k, share, selector)
        return Found(*neighbours.search(self.index, queries, k, similarity, parameters))

    def _wanted(self, category):
        """(bool [N] of the items to consider, None for all; their share)."""
        if not self.manifest["removed"] and category is None:
            return None, 1.0
        wanted = self.items["alive"]
        if category is not None:
            wanted = compute.and_(wanted, compute.equal(self.items["category"], category))
            if not compute.any(wanted).as_py():
                raise ValueError(f"no item of the index is of category {category!r}")
        wanted = wanted.to_numpy()
        return wanted, wanted.mean() or 1.0

    def check_weights(self, weights: str | None, source: str) -> None:
        """Raises ValueError if embeddings from `source` were made by other weights than these."""
        mine = self.manifest["weights"]
        if mine != weights:
            raise ValueError(
                f"{source} was embedded with other weights than the index: embed it with the "
                f"checkpoint of {str(mine)[:12]}, or build the index anew"
            )

    def close(self) -> None:
        """Frees the index and its items."""
        self.index = self.items = None

    def __enter__(self) -> "Catalogue":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def manifest_of(folder) -> dict:
    """Returns the manifest of the current version, without reading the index."""
    return _current(folder)[1]


def _current(folder):
    """(folder, manifest) of the current version."""
    version = versions.current(folder)
    return version, _manifest(version)


def _manifest(version):
    path = os.path.join(version, "manifest.json")
    manifest = files.read_sealed(path, KEYS, "an index")
    tuned, names = manifest["tuned"], {"index.faiss", "items.arrow"}
    if (
        not isinstance(tuned, dict)
        or not {"effort", "recall", "ms_per_query", "asked", "k"} <= tuned.keys()
        or not names <= manifest["sha256"].keys() <= {*names, inverted_lists.LISTS}
        or manifest["bytes"].keys() != manifest["sha256"].keys()
    ):
        raise ValueError(f"{path}: is damaged: its entries are not as retrieval.index writes them")
    return manifest


def _check_files(folder, version, manifest, everything):
    for name, checksum in manifest["sha256"].items():
        path = os.path.join(version, name)
        if not os.path.isfile(path):
            raise ValueError(f"{path}: is missing from its index")
        damaged = os.path.getsize(path) != manifest["bytes"][name]
        if not damaged and (name != inverted_lists.LISTS or everything):
            damaged = files.sha256(path) != checksum
        if damaged:
            others = [n for n in versions.numbers(folder) if n != manifest["version"]]
            again = (
                f"go back with `index rollback --to={others[-1]}`" if others else "build it anew"
            )
            raise ValueError(f"{path}: is damaged (its checksum differs); {again}")


def _read(version, manifest):
    """(FAISS index, items) of a version."""
    try:
        items = pyarrow.ipc.open_file(pyarrow.memory_map(os.path.join(version, "items.arrow")))
        items = items.read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{version}/items.arrow: cannot be read: {error}") from None
    if items.schema != ITEMS:
        raise ValueError(f"{version}: was written by another version of this program: build anew")
    read = inverted_lists.read if manifest["on_disk"] else faiss.read_index
    try:
        index = read(os.path.join(version, "index.faiss"))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"{version}/index.faiss: cannot be read: {reason}") from None
    if index.d != manifest["dimensions"] or index.ntotal != len(items):
        raise ValueError(f"{version}: index and items do not belong together")
    return index, items


# ---------------------------------------------------------------------------- changing an index


def build(source, folder, factory="auto", *, similarity="cosine", memory=None, recall=0.95, k=10,
          on_disk=False, queries=None, seed=0):  # fmt: skip
    """Builds an index from a store, in blocks. Earlier versions are kept.

    The search effort is tuned so that the asked recall holds for queries that the index has not
    seen: for the queries given or, without them, for items that are held out until it is tuned. It
    is the lower end of a 95% interval that must reach the recall.

    Args:
      source: folder of a store.
      folder: the index; new, empty, or an index.
      factory: a FAISS factory, or 'auto' for the most exact kind that fits the memory.
      similarity: 'cosine', 'dot' or 'euclidean'.
      memory: bytes that the index may take; half of what is available if None.
      recall: share of the k nearest items that a search must find.
      k: the number of neighbors that the recall is of.
      on_disk: keep the inverted lists of `factory` in a file; auto decides that itself.
      queries: folder of a store of real queries to tune with.
      seed: of what is drawn at random.

    Returns:
      The manifest.

    Raises:
      ValueError: an unknown factory, embeddings that cannot be searched, ids that occur twice, too
        little memory, or a folder that is not an index.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"--recall={recall:g}: takes a share above 0, up to 1")
    if memory is not None and not memory > 0:
        raise ValueError(f"--memory={memory / 2**30:g}: takes a number above 0")
    origin = _filled(source)
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
                f"--factory={factory}: has no inverted lists to keep on disk; IVF… has"
            )
        rows = _Rows(source, similarity)
        if not index.is_trained:
            wanted = 64 * getattr(neighbours.core(index), "nlist", 1024) + 4096
            wanted = min(wanted, max(4096, memory // (16 * dimensions)))
            some = rows[_sample(random, count, wanted)]
            print(f"training {factory} on {len(some)} of {count} items", file=sys.stderr)
            neighbours.train(index, some, factory, similarity)
        neighbours.check(index, neighbours.prepare(rows[np.arange(1)], similarity), factory)
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
            asking = _queries(queries, rows, held, origin, random)
            tuned = _tune(index, rows, kept, asking, recall, similarity, k)
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
            return _write(path, index, rows.items.take(np.concatenate([kept, held])), manifest)


def _filled(source):
    manifest = store.manifest_of(source)
    if not manifest["count"]:
        raise ValueError(f"{source}: holds no embeddings: there is nothing to index")
    return manifest


class _Rows:
    """A store's embeddings, memory-mapped in parts, and its items, an `ITEMS` table, all alive.

    Raises ValueError for a row that cannot be searched, and for an id that occurs twice.
    """

    def __init__(self, source, similarity):
        self.similarity, self.parts, tables = similarity, [], []
        for part, table in store.shards(source):
            if not len(part):
                continue
            vectors.Vectors(part, similarity, f"{source}, around {table['id'][0].as_py()!r}")
            self.parts.append(part)
            tables.append(table.append_column("alive", [np.ones(len(part), bool)]))
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.items = pyarrow.concat_tables(tables).cast(ITEMS)
        if len(compute.unique(self.items["id"])) < len(self.items):
            counts = compute.value_counts(self.items["id"])
            twice = counts.filter(compute.greater(counts.field("counts"), 1))[0]["values"]
            raise ValueError(f"{source}: id {twice.as_py()!r} occurs twice")

    def __getitem__(self, rows):
        """float32 [n, D] of ascending rows."""
        found = []
        for part, start, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)] - start
            found.append(np.asarray(part[inside], np.float32))
        return np.concatenate(found)

    def blocks(self, rows, size):
        """Yields the embeddings of ascending rows as FAISS takes them, some at a time."""
        size = max(1024, size)
        cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
        for cut in progress.track(cuts, len(cuts), "items", len):
            yield neighbours.prepare(self[cut], self.similarity)


def _sample(random, count, wanted):
    return np.sort(random.choice(count, min(count, wanted), replace=False))


def _queries(queries, rows, held, origin, random):
    """float32 [Q, D] to tune with: real ones, held-out items, or items moved by 10% noise."""
    if queries:
        weights = store.manifest_of(queries)["source"].get("checkpoint_sha256")
        if weights != origin["source"].get("checkpoint_sha256"):
            raise ValueError(f"--queries={queries}: was embedded with other weights than the store")
        found = store.read(queries).embeddings
        if found.shape[1] != rows.parts[0].shape[1]:
            raise ValueError(f"--queries={queries}: has {found.shape[1]} dimensions")
        return np.asarray(found[_sample(random, len(found), 2000)], np.float32)
    if len(held):
        return rows[held]
    some = rows[_sample(random, len(rows.items), HELD_OUT)]
    return neighbours.moved(some, rows.similarity, random)


def _tune(index, rows, kept, queries, recall, similarity, k):
    """The manifest's entry on search effort; the index holds `kept` rows."""
    near = min(k, len(kept))
    everything = rows.blocks(kept, BLOCK)
    truth = neighbours.nearest(queries, everything, near, similarity)[0]

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
    """Adds the items of a store to an index; an item whose id is there already is replaced.

    Returns:
      The manifest of the new version.

    Raises:
      ValueError: other weights or dimensions than the index's.
    """
    origin = _filled(source)
    with files.only_writer(folder), Catalogue.open(folder) as old:
        index, items, manifest = old.index, old.items, old.manifest
        old.check_weights(origin["source"].get("checkpoint_sha256"), source)
        if origin["dimensions"] != manifest["dimensions"]:
            raise ValueError(
                f"{source} has {origin['dimensions']} dimensions; the index takes "
                f"{manifest['dimensions']}"
            )
        rows = _Rows(source, manifest["similarity"])
        items = pyarrow.concat_tables([_without(items, rows.items["id"]), rows.items])
        blocks = rows.blocks(np.arange(origin["count"]), BLOCK)
        with versions.following(folder) as path:
            if manifest["on_disk"]:
                index = inverted_lists.write(index, blocks, path)
            else:
                for block in blocks:
                    index.add(block)
            return _write(path, index, items, manifest)


def remove(ids, folder):
    """Removes items by id.

    Returns:
      The manifest of the new version.

    Raises:
      ValueError: an id is not in the index; nothing is changed.
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
            return _write(path, index, items, manifest)


def _without(items, ids):
    """The items, those of the given ids no longer alive."""
    gone = compute.is_in(items["id"], ids)
    alive = compute.and_not(items["alive"], gone)
    return items.set_column(ITEMS.get_field_index("alive"), "alive", alive)


def rollback(folder, number):
    """Makes an earlier version the current one again.

    Returns:
      Its manifest.

    Raises:
      ValueError: there is no such version, or it is damaged; the current one stays.
    """
    with files.only_writer(folder):
        versions.current(folder)
        known = versions.numbers(folder)
        if number not in known:
            raise ValueError(
                f"--to={number}: {folder} has the versions {', '.join(map(str, known))}"
            )
        path = os.path.join(folder, "versions", f"{number:06d}")
        manifest = _manifest(path)
        _check_files(folder, path, manifest, everything=False)
        _read(path, manifest)
        versions.publish(folder, number)
    return manifest


def history(folder):
    """Returns [(manifest, whether it is current)] of the complete versions, oldest first."""
    current = os.path.basename(versions.current(folder))
    names = [f"{number:06d}" for number in versions.numbers(folder)]
    return [(_manifest(os.path.join(folder, "versions", n)), n == current) for n in names]


def _write(path, index, items, manifest):
    """Writes the files of a version and returns its manifest."""
    faiss.write_index(index, os.path.join(path, "index.faiss"))
    with pyarrow.ipc.new_file(os.path.join(path, "items.arrow"), ITEMS) as out:
        out.write_table(items)
    names = sorted(os.listdir(path))
    for name in names:  # FAISS does not
        files.sync(os.path.join(path, name))
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
    files.write_sealed(os.path.join(path, "manifest.json"), manifest)
    return manifest
