"""One version of an index with its model and images, as one object; and how a new one is taken."""

import asyncio
import collections
import dataclasses
import sys
import threading
from collections.abc import Callable

import numpy as np
from pyarrow import compute

from retrieval.catalogue import versions
from retrieval.catalogue.index import Catalogue
from retrieval.embeddings.embedder import Embedder
from retrieval.serve import schemas
from retrieval.serve.thumbnails import Thumbnails

FACETS = 100  # nearest items whose categories are counted
POLL = 0.5  # seconds between two looks for a new version


@dataclasses.dataclass(frozen=True)
class Served:
    """An open version of an index: a request uses one from its first step to its last.

    Attributes:
      name: of the catalogue.
      catalogue: index and items.
      embedder: the model whose embeddings the index holds.
      images: the items' images.
    """

    name: str
    catalogue: Catalogue
    embedder: Embedder
    images: Thumbnails

    @property
    def about(self) -> dict:
        """The fields of `schemas.Index`."""
        manifest = self.catalogue.manifest
        return {
            "catalogue": self.name,
            "version": manifest["version"],
            "model": manifest["weights"],
            "similarity": manifest["similarity"],
        }

    def row(self, id: str) -> int:
        """The row of the item of an id; raises Refused if there is none."""
        items = self.catalogue.items
        row = compute.index(items["id"], id).as_py() if _is_text(id) else -1
        while row >= 0 and not items["alive"][row].as_py():  # replaced by a later row
            later = compute.index(items["id"][row + 1 :], id).as_py()
            row = row + 1 + later if later >= 0 else -1
        if row < 0:
            raise schemas.Refused(404, "id", f"no item has the id {id!r}")
        return row

    def item(self, row: int) -> dict:
        """The fields of `schemas.Item`, except that `image` is a path."""
        items = self.catalogue.items
        found = {name: items[name][row].as_py() for name in ("id", "product", "category", "path")}
        found["image"] = found.pop("path")
        return found

    def vector(self, row: int) -> np.ndarray:
        """The embedding float32 [D] of an item, as far as the index keeps it."""
        return self.catalogue.index.reconstruct(int(row))

    def search(self, vector, k, *, category=None, threshold=None, group=False, without=None):
        """Searches for the nearest items.

        Args:
          vector: float [D].
          k: number of results.
          category: consider only its items.
          threshold: the least score of a result.
          group: keep the best item of each product only.
          without: row of the item that is the query, which is not a result.

        Returns:
          [(score, row)], best first.

        Raises:
          Refused: no item is of the category, or the vector does not fit.
        """
        most = max(len(self.catalogue.items), 1)
        wanted = k + (without is not None)
        while True:
            pairs = self._find(vector, min(wanted, most), category)
            kept = [
                (score, row)
                for score, row in pairs
                if row != without and (threshold is None or score >= threshold)
            ]
            kept = self._best_of_each(kept) if group else kept
            ended = len(pairs) < wanted or (threshold is not None and pairs[-1][0] < threshold)
            if not group or len(kept) >= k or ended or wanted >= most:
                return kept[:k]
            wanted *= 4

    def facets(self, vector) -> list[dict]:
        """Counts of the categories of the nearest items."""
        rows = [row for _, row in self._find(vector, min(FACETS, len(self.catalogue.items)))]
        counts = collections.Counter(self.catalogue.items["category"].take(rows).to_pylist())
        return [{"category": name, "count": n} for name, n in counts.most_common() if name]

    def _find(self, vector, k, category=None):
        try:
            found = self.catalogue.find(np.asarray(vector)[None], k, category)
        except ValueError as error:
            raise schemas.Refused(422, "query", str(error)) from None
        pairs = zip(found.scores[0].tolist(), found.rows[0].tolist(), strict=True)
        return [(score, row) for score, row in pairs if row >= 0]

    def _best_of_each(self, pairs):
        """The first pair of each product; an item without a product is one of its own."""
        products = self.catalogue.items["product"]
        best = {}
        for score, row in pairs:
            best.setdefault(products[row].as_py() or row, (score, row))
        return list(best.values())


def _is_text(value):
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check(catalogue: Catalogue, embedder: Embedder, place: str) -> None:
    """Raises ValueError if a model is not the one whose embeddings an index holds."""
    if embedder.dimensions != catalogue.manifest["dimensions"]:
        raise ValueError(
            f"{place}: holds embeddings of {catalogue.manifest['dimensions']} dimensions; the "
            f"model makes {embedder.dimensions}"
        )
    catalogue.check_weights(embedder.source.get("checkpoint_sha256"), place)


class Shelf:
    """The version of a catalogue that is served now, and the watch for the next.

    Attributes:
      current: the `Served`; replaced as a whole.
    """

    current: Served

    def __init__(self, name: str, folder: str, open_model: Callable[[Catalogue], Embedder],
                 images: Thumbnails, metrics):  # fmt: skip
        """Opens the current version of the index in `folder`, and its model.

        Raises:
          ValueError: not an index, or its embeddings are of another model.
        """
        self.name, self.folder, self.metrics = name, folder, metrics
        self._lock, self._looked_at = threading.Lock(), versions.current(folder)
        catalogue = Catalogue.open(folder)
        embedder = open_model(catalogue)
        check(catalogue, embedder, folder)
        self.current = Served(name, catalogue, embedder, images)
        self._warm(self.current)
        self._reported()

    def _reported(self):
        self.metrics.version.labels(self.name).set(self.current.catalogue.version)

    @staticmethod
    def _warm(served):
        """Uses index and model once, so that the first request is as fast as the others."""
        size, channels = served.embedder.size, served.embedder.channels
        vector = served.embedder.embed([np.full((*size, channels), 127, np.uint8)])[0]
        served.search(vector if np.any(vector) else np.ones_like(vector), 1)

    def refresh(self, again: bool = False) -> bool:
        """Takes the current version of the index if it is another; returns whether it did.

        A version that is damaged or of another model is refused once, on stderr; the old one stays.

        Args:
          again: also try a version that was refused before.
        """
        with self._lock:
            old = self.current
            try:
                folder = versions.current(self.folder)
                if folder == self._looked_at and not again:
                    return False
                self._looked_at = folder
                catalogue = Catalogue.open(self.folder)
                if catalogue.version == old.catalogue.version:
                    return False
                check(catalogue, old.embedder, folder)
                served = dataclasses.replace(old, catalogue=catalogue)
                self._warm(served)
            except (ValueError, OSError) as error:
                self.metrics.reloads.labels("refused").inc()
                version = old.catalogue.version
                print(f"{self.name}: stays at version {version}: {error}", file=sys.stderr)
                return False
            self.current = served
            self.metrics.reloads.labels("taken").inc()
            self._reported()
            print(f"{self.name}: serves version {catalogue.version}", file=sys.stderr)
            return True

    async def watch(self, pool) -> None:
        """Looks for new versions until cancelled."""
        while True:
            await asyncio.sleep(POLL)
            await asyncio.get_running_loop().run_in_executor(pool, self.refresh)
