"""The rows of a store: embeddings, memory-mapped in parts, and their items."""

from collections.abc import Iterator

import numpy as np
import pyarrow
from pyarrow import compute

from retrieval import progress
from retrieval.catalogue import neighbours
from retrieval.catalogue.reading import ITEMS
from retrieval.embeddings import store
from retrieval.ranking import vectors


class Rows:
    """Embeddings by row number.

    Attributes:
      parts: memory-mapped arrays [n, D].
      similarity: 'cosine', 'dot' or 'euclidean'.
    """

    def __init__(self, parts: list[np.ndarray], similarity: str) -> None:
        self.parts, self.similarity = parts, similarity
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, D] of ascending rows."""
        found = np.empty((len(rows), self.parts[0].shape[1]), np.float32)
        cuts = np.searchsorted(rows, self._starts)
        for part, start, a, b in zip(self.parts, self._starts, cuts, cuts[1:], strict=False):
            inside = rows[a:b] - start
            if a < b and inside[-1] - inside[0] + 1 == b - a:  # consecutive: without a copy
                inside = slice(inside[0], inside[-1] + 1)
            found[a:b] = part[inside]
        return found

    def blocks(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yields the embeddings of ascending rows for FAISS, in blocks."""
        size = max(1024, size)
        cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
        for cut in progress.track(cuts, len(cuts), "items", len):
            yield neighbours.prepare(self[cut], self.similarity)


def checked(source, similarity, start=0, stop=None) -> tuple[Rows, pyarrow.Table]:
    """The rows of a store, or a range of rows, and their items (an `ITEMS` table, none removed).

    Raises:
      ValueError: a row cannot be searched, or an id occurs twice.
    """
    parts, tables = [], []
    for part, table in store.shards(source, start=start, stop=stop):
        if not len(part):
            continue
        vectors.Vectors(part, similarity, f"{source}, around {table['id'][0].as_py()!r}")
        parts.append(part)
        tables.append(table.append_column("alive", [np.ones(len(part), bool)]))
    items = pyarrow.concat_tables(tables).cast(ITEMS)
    if len(compute.unique(items["id"])) < len(items):
        counts = compute.value_counts(items["id"])
        twice = counts.filter(compute.greater(counts.field("counts"), 1))[0]["values"]
        raise ValueError(f"{source}: id {twice.as_py()!r} occurs twice")
    return Rows(parts, similarity), items
