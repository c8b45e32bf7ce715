"""What "the same image" means: which catalogue items are a query itself.

- Two images that are files are the same if they are the same file by real path. Files with equal
  relative names in two folders are two images.
- If one of them is not a file (an image in memory, a row of an array), the given ids decide. Row
  numbers are not ids: sets without ids get distinct ones (see `retrieval.evaluation.inputs`).
- Two files with equal bytes are two images. This is a leak; it is counted and reported.
"""

import dataclasses

import numpy as np

from retrieval import metrics
from retrieval.embeddings.store import Embedded

RULES = ("same set", "same file", "same id")
NONE = "nothing in common"


@dataclasses.dataclass(frozen=True)
class Same:
    """Which catalogue items are the queries themselves.

    Attributes:
      query, item: int [E], the pairs of rows, distinct and ordered by query.
      num_items: size of the catalogue.
      rule: the first of RULES that found a pair; NONE if none did.
      excluded_by: {rule: queries that it excluded from their own results}; each query is counted
        under the first rule that excluded it.
      num_byte_equal_copies: queries with another image of equal bytes in the catalogue; None if the
        hashes of either set are unknown.
    """

    query: np.ndarray
    item: np.ndarray
    num_items: int
    rule: str = NONE
    excluded_by: dict[str, int] = dataclasses.field(default_factory=dict)
    num_byte_equal_copies: int | None = None

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        return self.query, self.item

    @property
    def most(self) -> int:
        """The largest number of items excluded for one query."""
        return int(np.bincount(self.query).max(initial=0))

    def among(self, rows, queries=None) -> np.ndarray:
        """Which results are the query itself.

        Args:
          rows: int [Q, k], catalogue rows, negative for none.
          queries: int [Q], the rows' queries; None: all in order.

        Returns:
          bool [Q, k].
        """
        queries = np.arange(len(rows)) if queries is None else np.asarray(queries)
        if not len(self.query):
            return np.zeros(rows.shape, bool)
        known = self.query * self.num_items + self.item
        wanted = queries[:, None] * self.num_items + rows
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return (known[at] == wanted) & (rows >= 0)


def same_images(queries: Embedded, catalogue: Embedded | None = None) -> Same:
    """Finds the catalogue items that are a query itself.

    Args:
      queries: the query images.
      catalogue: the searched items; None or the same object: the queries.
    """
    own_set = catalogue is None or catalogue is queries
    items = queries if catalogue is None else catalogue
    found = {}
    if own_set:
        found["same set"] = (np.arange(len(queries)),) * 2
    sides = [_text(side, "paths") for side in (queries, items)]
    files = [side != "" for side in sides]
    found["same file"] = _equal(*sides, *files)
    if not own_set:
        pairs = metrics.equal_pairs(queries.ids, items.ids)
        decides = ~(files[0][pairs[0]] & files[1][pairs[1]])
        found["same id"] = tuple(each[decides] for each in pairs)
    by = np.full(len(queries), len(RULES))
    for name, (query, _) in found.items():
        by[query] = np.minimum(by[query], RULES.index(name))
    counts = np.bincount(by, minlength=len(RULES))
    excluded_by = {name: int(n) for name, n in zip(RULES, counts, strict=False) if n}
    query, item = (np.concatenate(each) for each in zip(*found.values(), strict=True))
    pair = np.unique(query * len(items) + item)
    query, item = np.divmod(pair, len(items))
    copies = _copies(_text(queries, "hashes"), _text(items, "hashes"), query, item)
    rule = next(iter(excluded_by), NONE)
    return Same(query, item, len(items), rule, excluded_by, copies)


def _copies(queries, items, query, item):
    """Number of queries whose hash [Q] equals that of an item [N], without excluded pairs."""
    if not (queries != "").any() or not (items != "").any():
        return None
    hashes, codes = np.unique(np.concatenate([queries, items]), return_inverse=True)
    asked, there = codes[: len(queries)], codes[len(queries) :]
    count = np.bincount(there, minlength=len(hashes))[asked]
    excluded = query[asked[query] == there[item]]
    count -= np.bincount(excluded, minlength=len(queries))
    return int(np.count_nonzero((count > 0) & (queries != "")))


def sentences(excluded_by, num_byte_equal_copies):
    """Describes the findings of `Same` in sentences."""
    if excluded_by:
        rules = ", ".join(f"{rule}: {count:,}" for rule, count in excluded_by.items())
        yield (
            f"Queries that are in the catalogue and are excluded from their own results: "
            f"{sum(excluded_by.values()):,} ({rules})."
        )
    if num_byte_equal_copies:
        yield (
            "Queries with a byte-equal copy in the catalogue, under another name: "
            f"{num_byte_equal_copies:,}. They are easy to find: a leak, unless it is intended."
        )


def _text(items, column):
    values = getattr(items, column)
    return np.full(len(items), "") if values is None else values


def _equal(queries, catalogue, query_known, item_known):
    """Pairs of rows with equal text, where it is known."""
    some, others = np.flatnonzero(query_known), np.flatnonzero(item_known)
    query, item = metrics.equal_pairs(queries[some], catalogue[others])
    return some[query], others[item]
