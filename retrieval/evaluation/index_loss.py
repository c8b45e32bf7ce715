"""Compares an approximate index with exact search: recall, speed and size."""

import dataclasses
import os
import time
from typing import Any

import faiss
import numpy as np

from retrieval import metrics
from retrieval.catalogue import index, neighbours
from retrieval.catalogue.opened import is_milvus
from retrieval.evaluation import lists
from retrieval.evaluation.records import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexLoss(Record):
    """An index compared with exact search of the same queries.

    Attributes:
      factory: the FAISS factory of the index.
      bytes_per_vector, exact_bytes_per_vector: size of the index, and of float32 embeddings.
      tuned: the search effort and how it was found, see `neighbours.tune`.
      recall: recall@k through the index, with the search effort for k results.
      lost: exact recall@k minus `recall`.
      agreement: fraction of the `depth` nearest items of exact search, without the query itself,
        that the index finds; items with equal scores are interchangeable.
      depth: at most 10.
      ms_per_query, exact_ms_per_query: time of a search for `depth` results of all queries at once,
        divided by their number.
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
      kind: a FAISS factory or 'auto': the index is built and tuned to find the fraction `recall` of
        the ten nearest items; or the folder of an index of this catalogue.
      recall: see `kind`.

    Raises:
      ValueError: the index cannot be built, or the index in the folder is of another catalogue.
    """
    similarity, exact_rates = result.figures.similarity, result.figures.recall
    opened = _opened if os.path.isdir(kind) or is_milvus(kind) else _made
    find, about = opened(kind, catalogue, similarity, recall)
    more, count = result.same.most, len(catalogue)
    depth = min(10, count - more)
    rates, found, seconds = {}, {}, {}
    for k in sorted({*exact_rates, depth}):  # with the search effort for k
        start = time.perf_counter()
        parts = lists.tracked(len(queries), lists.AT_ONCE, f"search of {kind}, k={k}, queries")
        wanted = min(k + more, count)
        rows = np.concatenate([find(queries.embeddings[part], wanted) for part in parts])
        seconds[k] = time.perf_counter() - start
        # After the last item, an index returns row -1.
        itself = result.same.among(rows)
        right = (catalogue.products[rows] == queries.products[:, None]) & (rows >= 0)
        place = lists.first_right(right, itself)[result.ranking.answerable]
        rates[k] = metrics.mean(place <= k)
        found[k] = lists.without(np.zeros(rows.shape), rows, itself, k)[1]
    start = time.perf_counter()
    exact = lists.nearest(queries.embeddings, catalogue.embeddings, depth + more, similarity)
    exact_seconds = time.perf_counter() - start
    truth = lists.without(*exact, result.same.among(exact[1]), depth)
    return IndexLoss(
        **about,
        recall={k: rates[k] for k in exact_rates},
        lost={k: exact_rates[k] - rates[k] for k in exact_rates},
        agreement=_agreement(queries, catalogue, similarity, truth, found[depth]),
        depth=depth,
        ms_per_query=1e3 * seconds[depth] / len(queries),
        exact_ms_per_query=1e3 * exact_seconds / len(queries),
        exact_bytes_per_vector=4 * catalogue.embeddings.shape[1],
    )


def _agreement(queries, catalogue, similarity, truth, found):
    """Fraction of the nearest items, scores and rows [Q, k], that are among the rows found [Q, k].

    An item with the same score as the last of them counts as one of them.
    """
    there = np.unique(found[found >= 0])
    if not len(there):
        return 0.0
    items = neighbours.prepare(catalogue.embeddings[there], similarity)
    shares = []
    for start in range(0, len(found), 1024):
        part = slice(start, start + 1024)
        at = np.searchsorted(there, found[part]).clip(max=len(there) - 1)
        asked = np.asarray(queries.embeddings[part])
        scores = neighbours.pair_scores(asked, items, at, similarity)
        known = np.isfinite(truth[0][part])
        last = np.where(known, truth[0][part], np.inf).min(1, keepdims=True)
        hits = (found[part] >= 0) & neighbours.as_near(scores, last)
        wanted = known.sum(1)
        shares.append(np.minimum(hits.sum(1), wanted) / np.maximum(wanted, 1))
    return metrics.mean(np.concatenate(shares))


def _made(factory, catalogue, similarity, recall):
    """Builds an index in memory, tuned with items that are added only afterwards."""
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
        rows = neighbours.search(made, queries, k, similarity, effort)[1]
        return np.where(rows < 0, -1, order[rows])

    return find, about


def _opened(folder, catalogue, similarity, _):
    opened = index.Catalogue.open(folder)
    items, manifest = opened.items, opened.manifest
    if manifest["similarity"] != similarity:
        raise ValueError(f"--index={folder}: was built for --similarity={manifest['similarity']}")
    about = {name: manifest[name] for name in ("factory", "bytes_per_vector", "tuned")}
    if items is None:  # in Milvus, which returns ids
        return _by_id(folder, opened, catalogue), about | {
            "factory": f"Milvus of {about['factory']}"
        }
    alive = np.flatnonzero(items["alive"].to_numpy())
    held = np.array(items["id"].to_pylist(), str)[alive]
    by_id, held_by_id = np.argsort(catalogue.ids), np.argsort(held)
    if not np.array_equal(held[held_by_id], catalogue.ids[by_id]):
        raise ValueError(
            f"--index={folder}: has {len(held)} items, not the {len(catalogue)} of this "
            "catalogue; build it from the same store, or give a FAISS factory"
        )
    row = np.full(len(items) + 1, -1)  # catalogue row by index row; the last entry is for -1
    row[alive[held_by_id]] = by_id
    return lambda queries, k: row[opened.find(queries, k).rows], about


def _by_id(folder, opened, catalogue):
    """Returns a function that finds catalogue rows with an index that returns only ids."""
    if opened.manifest["count"] != len(catalogue):
        raise ValueError(
            f"--index={folder}: has {opened.manifest['count']} items, not the {len(catalogue)} "
            "of this catalogue"
        )
    by_id = np.argsort(catalogue.ids)
    ordered = catalogue.ids[by_id]

    def find(queries, k):
        found = opened.find(queries, k)
        names = np.array(found.items["id"].to_pylist(), str)
        at = np.searchsorted(ordered, names).clip(max=len(ordered) - 1)
        if not np.array_equal(ordered[at], names):
            raise ValueError(f"--index={folder}: has other items than this catalogue")
        return np.append(by_id[at], -1)[found.rows]

    return find
