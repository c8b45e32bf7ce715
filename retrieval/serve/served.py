"""One version of an index with its model and images, as one object; and how a new one is taken."""

import asyncio
import collections
import dataclasses
import functools
import sys
import threading

import numpy as np

from retrieval.catalogue import opened
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings.embedder import Embedder
from retrieval.embeddings.texts import TextEmbedder
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
      texts: the model's text tower, None without one.
      alone: the model once more, with all cores per call, for a query that has the server to
        itself; None where `embedder` uses them all.
    """

    name: str
    catalogue: Catalogue
    embedder: Embedder
    images: Thumbnails
    texts: TextEmbedder | None = None
    alone: Embedder | None = None

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

    def item(self, id: str) -> dict:
        """The id, product, category and path of an item; Refused if there is none."""
        try:
            found = self.catalogue.item(id)
        except UnicodeEncodeError:  # half of a surrogate pair
            found = None
        if found is None:
            raise schemas.Refused(404, "id", f"no item has the id {id!r}")
        return found

    def search(self, query: str | np.ndarray, k: int, facets: bool = False, **options):
        """Searches for the nearest items.

        Args:
          query: float [D], or the id of an item, which is not among its results.
          k: number of results.
          facets: also count the categories of the nearest items.
          options: category, threshold and by_product, as in `Catalogue.find`.

        Returns:
          (results as of `Catalogue.results`; [{'category', 'count'}] or None).

        Raises:
          Refused: no such id or category, or the vector does not fit.
        """
        if isinstance(query, str):
            self.item(query)
            find = functools.partial(self.catalogue.find_like, [query])
        else:
            find = functools.partial(self.catalogue.find, np.asarray(query)[None])
        try:
            results = self.catalogue.results(find(k, **options))[0]
            return results, self._facets(find(FACETS)) if facets else None
        except ValueError as error:
            raise schemas.Refused(422, "query", str(error)) from None

    def _facets(self, found):
        rows = found.rows[found.rows >= 0]
        counts = collections.Counter(found.items["category"].take(rows).to_pylist())
        return [{"category": name, "count": n} for name, n in counts.most_common() if name]


class Shelf:
    """The version of a catalogue that is served now, and the watch for the next.

    Attributes:
      current: the `Served`; replaced as a whole.
    """

    current: Served

    def __init__(self, name: str, folder: str, images: Thumbnails, metrics, threads: int = 0,
                 alone: int | None = None):  # fmt: skip
        """Opens the current version of the index in `folder`, with the model that it carries.

        Args:
          name, folder, images, metrics: see `opening.shelves`.
          threads: of TensorFlow per call of the model, 0 for all cores.
          alone: those of `Served.alone`; None for no such model.

        Raises:
          ValueError: not an index, a damaged one, or one without a model.
        """
        self.name, self.folder, self.metrics = name, folder, metrics
        self._lock, self._looked_at = threading.Lock(), opened.current_name(folder)
        catalogue = Catalogue.open(folder)
        embedder, texts = catalogue.embedder(threads), None
        if not catalogue.why_no_texts():
            try:
                texts = catalogue.text_embedder(threads)
            except ValueError as error:
                print(f"{name}: searches by image only: {error}", file=sys.stderr)
        lone = None if alone is None else catalogue.embedder(alone)
        self.current = Served(name, catalogue, embedder, images, texts, lone)
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
                folder = opened.current_name(self.folder)
                if folder == self._looked_at and not again:
                    return False
                self._looked_at = folder
                catalogue = Catalogue.open(self.folder)
                if catalogue.version == old.catalogue.version:
                    return False
                catalogue.check_weights(old.catalogue.manifest["weights"], "the model in use")
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
