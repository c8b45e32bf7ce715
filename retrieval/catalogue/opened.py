"""An opened catalogue: an index, its items and the model that embeds queries.

with Catalogue.open("index") as catalogue, catalogue.embedder() as embedder:
    found = catalogue.find(embedder.embed(["photo.jpg"]), k=5)
    found = catalogue.find_like(["shoes/7.jpg"], k=5, category="shoes")
    print(catalogue.results(found))
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pyarrow
from pyarrow import compute

from retrieval.catalogue import neighbours, versions
from retrieval.catalogue.reading import (
    MODEL,
    check_file,
    check_files,
    current,
    read,
    reconstruct,
)
from retrieval.ranking import vectors
from trainer.config import did_you_mean

if TYPE_CHECKING:
    from retrieval.embeddings.embedder import Embedder
    from retrieval.embeddings.texts import TextEmbedder

NAMED = ("id", "product", "category", "path")  # columns of an item
TEXTS = f"{MODEL}/text/"  # folder of the text tower


@dataclass(frozen=True)
class Found:
    """The results of a search.

    Attributes:
      scores: float32 [Q, k], best first; larger is nearer. -inf beyond the last item found.
      rows: int64 [Q, k], rows of `items`; -1 beyond the last.
      items: pyarrow.Table of id, product, category and path, with at least the items found.
    """

    scores: np.ndarray
    rows: np.ndarray
    items: pyarrow.Table = field(repr=False)


class Catalogue:
    """An index, its items and its model as one object. Safe to search from several threads.

    Attributes:
      items: pyarrow.Table of `ITEMS`; row i describes row i of the index. Memory-mapped, so that
        names take no memory before they are read.
      manifest: dict, the properties of the index and its tuning.
      version: int, the number of this version.
      folder: the folder of this version.
    """

    items: pyarrow.Table
    manifest: dict
    version: int
    folder: str

    def __init__(self, index, items, manifest, folder):
        """Internal; use `open`."""
        self.index, self.items, self.manifest = index, items, manifest
        self.version, self.folder = manifest["version"], folder

    @classmethod
    def open(cls, folder: str | os.PathLike, everything: bool = False) -> "Catalogue":
        """Opens the current version of an index.

        Args:
          folder: the index; or `milvus:URI`, see `retrieval.catalogue.milvus`.
          everything: also compare the checksums of lists on disk and of the model; by default only
            their sizes.

        Raises:
          ValueError: not an index, or its files are damaged or of another program.
        """
        if is_milvus(folder):
            from retrieval.catalogue import milvus

            return milvus.open_catalogue(os.fspath(folder))
        version, manifest = current(folder)
        check_files(folder, version, manifest, everything)
        index, items = read(version, manifest)
        return cls(index, items, manifest, version)

    def embedder(self, threads: int = 0) -> "Embedder":
        """Loads the model that embedded the items, from the index.

        Args:
          threads: number of TensorFlow's threads, 0 for all cores.

        Raises:
          ValueError: the index contains no model, or a model that is damaged or has other weights.
        """
        from retrieval.embeddings.embedder import Embedder

        folder = self._model(lambda name: not name.startswith(TEXTS))
        made = Embedder.load(folder, threads)
        if made.dimensions != self.manifest["dimensions"]:
            made.close()
            raise ValueError(
                f"{folder}: its embeddings have {made.dimensions} dimensions, those of the index "
                f"{self.manifest['dimensions']}: build it again with `prototrain build`"
            )
        self.check_weights(made.source.get("checkpoint_sha256"), folder)
        return made

    def text_embedder(self, threads: int = 0) -> "TextEmbedder":
        """Loads the text tower of the model that embedded the items, to search by words.

        Args:
          threads: number of TensorFlow's threads, 0 for all cores.

        Raises:
          ValueError: there is no text tower (the message says why), it is damaged, or a library is
            missing.
        """
        from retrieval.embeddings.texts import TextEmbedder

        note = f"{MODEL}/assets.extra/"
        folder = self._model(lambda name: name.startswith((TEXTS, note)))
        made = TextEmbedder.load(folder, threads)
        if made.dimensions != self.manifest["dimensions"]:
            made.close()
            raise ValueError(f"{folder}: texts have {made.dimensions} dimensions, unlike the index")
        return made

    def why_no_texts(self) -> str:
        """Why the index cannot be searched by text, one line; '' if it can."""
        from retrieval.embeddings import texts

        try:
            return texts.why_not(self._model(lambda name: name.startswith(f"{MODEL}/assets.extra")))
        except ValueError as error:
            return str(error)

    def _model(self, needed):
        """The folder of the model, after checking its `needed` files."""
        names = [name for name in self.manifest["sha256"] if name.startswith(f"{MODEL}/")]
        if not names:
            raise ValueError(
                f"{os.path.dirname(os.path.dirname(self.folder))}: contains no model to embed a "
                "photo with: build it again with `prototrain build`"
            )
        for name in filter(needed, names):
            check_file(self.folder, name, self.manifest, "build it again with `prototrain build`")
        return os.path.join(self.folder, MODEL)

    def find(
        self,
        vectors_: np.ndarray,
        k: int = 10,
        category: str | None = None,
        *,
        threshold: float | None = None,
        by_product: bool = False,
    ) -> Found:
        """Searches for the nearest items.

        Args:
          vectors_: float [Q, D], the queries' embeddings.
          k: number of results per query.
          category: consider only items of this category.
          threshold: exclude items with lower scores.
          by_product: only the best item of each product is a result.

        Raises:
          ValueError: vectors have the wrong shape, k is below 1, or the category has no items.
        """
        queries = np.asarray(vectors_)
        if queries.ndim != 2 or queries.shape[1] != self.manifest["dimensions"]:
            raise ValueError(
                f"queries are {list(queries.shape)}; the index takes "
                f"[rows, {self.manifest['dimensions']}]"
            )
        vectors.Vectors(queries, self.manifest["similarity"], "queries")
        return self._find(queries, None, k, category, threshold, by_product)

    def find_like(self, ids: Sequence[str], k: int = 10, category: str | None = None, *,
                  threshold: float | None = None, by_product: bool = False) -> Found:  # fmt: skip
        """Searches for the items nearest to given items, which are excluded from their own results.

        Args:
          ids: [Q], ids of the items.
          k, category, threshold, by_product: as in `find`.

        Raises:
          ValueError: an id is unknown, this kind of index cannot return vectors, or as in `find`.
        """
        rows = np.array([self.row_of(name) for name in ids], np.int64)
        queries = np.empty((len(rows), self.manifest["dimensions"]), np.float32)
        try:
            for query, row in zip(queries, rows.tolist(), strict=True):
                reconstruct(self.index, self.manifest["factory"], row, query[None])
        except ValueError as error:
            raise ValueError(f"{error}: search with the item's image") from None
        return self._find(queries, rows[:, None], k, category, threshold, by_product)

    def _find(self, queries, own, k, category, threshold, by_product):
        """`find` without the items `own`, one per query, see `_own`; None: with all items."""
        count = self.manifest["count"]
        if k < 1:
            raise ValueError(f"--k={k}: takes a number of at least 1")
        if k > max(count, 1000):
            raise ValueError(f"--k={k}: the index holds {count} items")
        selection = self._selection(category)
        depth = k + (own is not None)
        while True:
            scores, rows, items = self._nearest(queries, depth, selection)
            kept = rows >= 0
            if own is not None:
                kept &= rows != self._own(own, items)
            if by_product:
                kept &= _first_of_products(items, rows)
            if threshold is not None:
                kept &= scores >= threshold
            # The last score is the lowest: no further item is above the threshold either.
            done = (kept.sum(1) >= k) | (rows[:, -1] < 0)
            if threshold is not None:
                done |= scores[:, -1] < threshold
            if not by_product or done.all() or depth >= count or rows.shape[1] < depth:
                return _first(scores, rows, kept, k, items)
            depth = min(4 * depth, count)

    def _selection(self, category):
        """The argument with which `_nearest` searches only items of a category; None for all."""
        wanted, share = self._wanted(category)
        if wanted is None:
            return None, None, share
        bits = np.packbits(wanted, bitorder="little")  # FAISS makes no copy: keep it
        return bits, faiss.IDSelectorBitmap(len(wanted), faiss.swig_ptr(bits)), share

    def _nearest(self, queries, depth, selection):
        """(scores [Q, n], rows [Q, n], items) of the `depth` nearest items, as in `Found`.

        n is less than `depth` if that is the maximum of a search.
        """
        _, selector, share = selection
        how = neighbours.served(self.index, self.manifest["tuned"], depth, share, selector)
        similarity = self.manifest["similarity"]
        return *neighbours.search(self.index, queries, depth, similarity, how), self.items

    def _own(self, own, items):
        """The rows [Q, 1] of the queries' own items among `items`."""
        return own

    def results(self, found: Found) -> list[list[dict]]:
        """Returns the items found, per query, best first, as JSON values.

        Each result is {'rank', 'id', 'product', 'category', 'score', 'path'}; the path is '' for an
        item that is not an image file.
        """
        needed = np.unique(found.rows[found.rows >= 0])
        names = list(NAMED)
        items = found.items.select(names).take(pyarrow.array(needed, pyarrow.int64())).to_pylist()
        known = dict(zip(needed.tolist(), items, strict=True))

        def answer(rank, score, row):
            *texts, path = (known[row][name] for name in names)
            values = dict(zip(names, texts, strict=False))
            return {"rank": rank, **values, "score": score, "path": path}

        return [
            [answer(n, s, r) for n, (s, r) in enumerate(zip(*pair, strict=True), 1) if r >= 0]
            for pair in zip(found.scores.tolist(), found.rows.tolist(), strict=True)
        ]

    def row_of(self, name: str) -> int:
        """Returns the row of the item with an id; ValueError names the nearest ids."""
        there = compute.and_(compute.equal(self.items["id"], name), self.items["alive"])
        row = compute.index(there, True).as_py()
        if row < 0:
            ids = self.items["id"].filter(self.items["alive"])
            near = did_you_mean(name, ids.slice(0, 20_000).to_pylist())  # more would take seconds
            raise ValueError(f"no item of the index has the id {str(name)!r}.{near}")
        return row

    def item(self, name: str) -> dict | None:
        """Returns id, product, category and path of the item with an id; None if there is none."""
        there = compute.and_(compute.equal(self.items["id"], name), self.items["alive"])
        row = compute.index(there, True).as_py()
        return None if row < 0 else {n: self.items[n][row].as_py() for n in NAMED}

    def categories(self) -> list[str]:
        """Returns the sorted categories of the items."""
        known = compute.unique(self.items["category"].filter(self.items["alive"]))
        return sorted(filter(None, known.to_pylist()))

    def _wanted(self, category):
        """(bool [N] of the items to consider, None for all; their fraction)."""
        if not self.manifest["removed"] and category is None:
            return None, 1.0
        wanted = self.items["alive"]
        if category is not None:
            wanted = compute.and_(wanted, compute.equal(self.items["category"], category))
            if not compute.any(wanted).as_py():
                raise ValueError(no_category(category, self.categories()))
        wanted = wanted.to_numpy()
        return wanted, wanted.mean() or 1.0

    def check_weights(self, weights: str | None, source: str) -> None:
        """Raises ValueError if embeddings from `source` were computed with other weights."""
        mine = self.manifest["weights"]
        if mine != weights:
            raise ValueError(
                f"{source} was embedded with other weights than the index: embed it with the "
                f"checkpoint of {str(mine)[:12]}, or build the index again"
            )

    def close(self) -> None:
        """Frees the index and its items."""
        self.index = self.items = None

    def __enter__(self) -> "Catalogue":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def is_milvus(name: str | os.PathLike) -> bool:
    """Whether the name of an index is an address of Milvus."""
    return os.fspath(name).startswith("milvus:")


def current_name(name) -> str:
    """The name of the current version of an index; each version has another name."""
    if is_milvus(name):
        from retrieval.catalogue import milvus

        return milvus.current(name)
    return versions.current(name)


def no_category(category, known) -> str:
    """The message that no item is of a category, with the known categories."""
    near = did_you_mean(category, known)
    have = f" It has {', '.join(known[:10])}{' …' * (len(known) > 10)}." * bool(known)
    return f"no item of the index is of category {category!r}." + (
        near or have or " Its items have no categories."
    )


def _first_of_products(items, rows):
    """bool [Q, k]: whether no earlier result of the query is of the same product."""
    if not len(items):
        return rows >= 0
    products = items["product"].take(pyarrow.array(np.maximum(rows, 0).ravel()))
    codes = products.combine_chunks().dictionary_encode().indices.to_numpy().reshape(rows.shape)
    first = np.zeros(rows.shape, bool)
    for line, each in zip(first, codes, strict=True):
        line[np.unique(each, return_index=True)[1]] = True
    return first


def _first(scores, rows, kept, k, items):
    """`Found` of the first k kept results of each query."""
    found = Found(
        np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64), items
    )
    place = kept.cumsum(1) - 1
    query, at = np.nonzero(kept & (place < k))
    found.scores[query, place[query, at]] = scores[query, at]
    found.rows[query, place[query, at]] = rows[query, at]
    return found
