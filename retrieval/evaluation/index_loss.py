"""What an approximate index loses against exact search, with its speed and size."""

import dataclasses
import os
import time
from typing import Any

import faiss
import numpy as np

from retrieval import metrics
from retrieval.catalogue import index, neighbours
from retrieval.evaluation import lists
from retrieval.evaluation.records import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexLoss(Record):
    """An index compared with exact search of the same queries.

    Attributes:
      factory: the FAISS factory of the index.
      bytes_per_vector, exact_bytes_per_vector: size of the index, and of float32 embeddings.
      tuned: the search effort and how it was found, see `neighbours.tune`.
      recall: recall@k through the index.
      lost: exact recall@k less `recall`.
      agreement: share of the `depth` nearest items of exact search, without the query itself, that
        the index finds.
      depth: at most 10.
      ms_per_query, exact_ms_per_query: time of all queries at once, divided by their number.
    """

    factory: str
    bytes_per_vector: float
    tuned: dict[str, Any]
    recall: dict[int, float]
    lost: dict[int, float]
    agreement: float
    depth: int
    ms_per_query: float
    exact_ms_per_query: float
    exact_bytes_per_vector: int


def losses(queries, catalogue, result, kind, recall=0.95) -> IndexLoss:
    """Evaluates an index over the catalogue.

    Args:
      queries, catalogue: `Embedded`.
      result: the exact `figures.Evaluation` of both.
      kind: a FAISS factory or 'auto', which is built here and tuned to find the share `recall` of
        the ten nearest items; or the folder of an index that `retrieval.index` built of this
        catalogue.
      recall: see `kind`.

    Raises:
      ValueError: no such index can be built, or the index in the folder is of something else.
    """
    similarity, exact_rates = result.figures.similarity, result.figures.recall
    opened = _opened if os.path.isdir(kind) else _made
    find, ids, products, about = opened(kind, catalogue, similarity, recall)
    k = min(max(exact_rates) + 1, len(catalogue))
    start = time.perf_counter()
    parts = lists.tracked(len(queries), lists.AT_ONCE, f"search of {kind}, queries")
    rows = np.concatenate([find(queries.embeddings[part], k) for part in parts])
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    exact = lists.nearest(queries.embeddings, catalogue.embeddings, k, similarity)
    exact_seconds = time.perf_counter() - start
    # An index gives row -1, which is not an item, after the last that it finds.
    itself = (ids[rows] == queries.ids[:, None]) & (rows >= 0)
    right = (products[rows] == queries.products[:, None]) & (rows >= 0)
    place = lists.first_right(right, itself)[result.ranking.answerable]
    rates = {k: metrics.mean(place <= k) for k in exact_rates}
    depth = min(10, k)
    truth = lists.without_self(*exact, queries.ids, catalogue.ids, depth)[1]
    found = lists.without_self(np.zeros(rows.shape), rows, queries.ids, ids, depth)[1]
    found = np.where(found < 0, "", ids[found])
    agree = (catalogue.ids[truth][:, :, None] == found[:, None]).any(2)[truth >= 0]
    return IndexLoss(
        **about,
        recall=rates,
        lost={k: exact_rates[k] - rates[k] for k in rates},
        agreement=metrics.mean(agree),
        depth=depth,
        ms_per_query=1e3 * seconds / len(queries),
        exact_ms_per_query=1e3 * exact_seconds / len(queries),
        exact_bytes_per_vector=4 * catalogue.embeddings.shape[1],
    )


def _made(factory, catalogue, similarity, recall):
    """Builds an index in memory, tuned on items that are held out until it is tuned."""
    count, dimensions = catalogue.embeddings.shape
    if factory == "auto":
        factory = neighbours.choose(count, dimensions, neighbours.free_memory() // 2, recall)[0]
    made = neighbours.make(factory, dimensions, similarity)
    items = neighbours.prepare(catalogue.embeddings, similarity)
    if not made.is_trained:
        neighbours.train(made, items, factory, similarity)
    order = np.random.default_rng(0).permutation(count)
    held, kept = np.split(order, [min(index.HELD_OUT, count // 10)])
    asking = items[held] if len(held) else items
    for part in lists.tracked(len(kept), lists.AT_ONCE, f"adding to {factory}, items"):
        made.add(items[kept[part]])
    near = min(10, len(kept))
    truth = neighbours.nearest(asking, [items[kept]], near, similarity)[0]

    def exact(rows):
        scores = neighbours.pair_scores(asking, items, kept[np.maximum(rows, 0)], similarity)
        return np.where(rows < 0, -np.inf, scores)

    tuned = neighbours.tune(made, asking, truth, exact, recall, similarity, near)
    tuned |= {"asked": recall, "k": near, "num_queries": len(asking)}
    made.add(items[held])
    order = np.concatenate([kept, held])
    about = {
        "factory": factory,
        "bytes_per_vector": len(faiss.serialize_index(made)) / count,
        "tuned": tuned,
    }

    def find(queries, k):
        effort = neighbours.served(made, tuned, k)
        return neighbours.search(made, queries, k, similarity, effort)[1]

    return find, catalogue.ids[order], catalogue.products[order], about


def _opened(folder, catalogue, similarity, _):
    opened = index.Catalogue.open(folder)
    items, manifest = opened.items, opened.manifest
    if manifest["similarity"] != similarity:
        raise ValueError(f"--index={folder}: was built for --similarity={manifest['similarity']}")
    ids, products = (np.array(items[name].to_pylist(), str) for name in ("id", "product"))
    held = ids[items["alive"].to_numpy()]
    if not np.array_equal(np.sort(held), np.sort(catalogue.ids)):
        raise ValueError(
            f"--index={folder}: holds {len(held)} items, not the {len(catalogue)} of this "
            "catalogue; build it from the same store, or name a FAISS factory"
        )
    about = {name: manifest[name] for name in ("factory", "bytes_per_vector", "tuned")}
    return lambda queries, k: opened.find(queries, k).rows, ids, products, about
