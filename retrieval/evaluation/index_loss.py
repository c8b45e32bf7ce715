"""What an approximate index loses against exact search, with its speed and size."""

import os
import time

import faiss
import numpy as np

from retrieval import metrics
from retrieval.catalogue import index, neighbours
from retrieval.evaluation import lists


def losses(queries, catalogue, result, kind, recall=0.95):
    """Figures of an index over the catalogue: recall beside the exact one, speed and size.

    result: the exact `figures.Evaluation` of both `Embedded`. kind: a FAISS factory or 'auto',
    of which an index is made and tuned to find the share `recall` of the ten nearest, or the folder
    of one that `retrieval.index` built of this catalogue. 'agreement' is the share of the `depth`
    nearest items of exact search, the query itself aside, that the index finds. ValueError where no
    such index can be made, or that of the folder is of something else.
    """
    similarity, ks = result.figures["similarity"], list(result.figures["recall@k"])
    opened = _opened if os.path.isdir(kind) else _made
    find, about = opened(kind, catalogue, similarity, recall)
    k = min(max(ks) + result.same.most, len(catalogue))
    start = time.perf_counter()
    parts = lists.tracked(len(queries), lists.AT_ONCE, f"search of {kind}, queries")
    rows = np.concatenate([find(queries.embeddings[part], k) for part in parts])
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    exact = lists.nearest(queries.embeddings, catalogue.embeddings, k, similarity)
    exact_seconds = time.perf_counter() - start
    # An index gives row -1, which is not an item, after the last that it finds.
    itself = result.same.among(rows)
    right = (catalogue.products[rows] == queries.products[:, None]) & (rows >= 0)
    place = lists.first_right(right, itself)[result.ranking.answerable]
    rates = {k: metrics.mean(place <= k) for k in ks}
    depth = min(10, k)
    truth = lists.without(*exact, result.same.among(exact[1]), depth)[1]
    found = lists.without(np.zeros(rows.shape), rows, itself, depth)[1]
    agree = (truth[:, :, None] == found[:, None]).any(2)[truth >= 0]
    return about | {
        "recall@k": rates,
        "lost": {k: result.figures["recall@k"][k] - rates[k] for k in ks},
        "agreement": metrics.mean(agree),
        "depth": depth,
        "ms_per_query": 1e3 * seconds / len(queries),
        "exact_ms_per_query": 1e3 * exact_seconds / len(queries),
        "exact_bytes_per_vector": 4 * catalogue.embeddings.shape[1],
    }


def _made(factory, catalogue, similarity, recall):
    """An index of the catalogue in memory, tuned on other queries: items moved a little."""
    embeddings = catalogue.embeddings
    count, dimensions = embeddings.shape
    if factory == "auto":
        factory = neighbours.choose(count, dimensions, neighbours.free_memory() // 2, recall)[0]
    made = neighbours.make(factory, dimensions, similarity)
    items = neighbours.prepare(embeddings, similarity)
    if not made.is_trained:
        neighbours.train(made, items, factory, similarity)
    for part in lists.tracked(count, lists.AT_ONCE, f"adding to {factory}, items"):
        made.add(items[part])
    random = np.random.default_rng(0)
    some = neighbours.moved(items[random.permutation(count)[:500]], similarity, random)
    near = min(10, count)
    truth = neighbours.nearest(some, [embeddings], near, similarity)[1]
    tuned = neighbours.tune(made, some, truth, recall, similarity, near)
    effort = neighbours.effort(made, tuned["effort"])
    about = {
        "factory": factory,
        "bytes_per_vector": len(faiss.serialize_index(made)) / count,
        "tuned": {**tuned, "asked": recall, "k": near},
    }

    def find(queries, k):
        return neighbours.search(made, queries, k, similarity, effort)[1]

    return find, about


def _opened(folder, catalogue, similarity, _):
    loaded = index.load(folder)
    _, items, manifest = loaded
    if manifest["similarity"] != similarity:
        raise ValueError(f"--index={folder}: was built for --similarity={manifest['similarity']}")
    alive = np.flatnonzero(items["alive"].to_numpy())
    held = np.array(items["id"].to_pylist(), str)[alive]
    by_id, held_by_id = np.argsort(catalogue.ids), np.argsort(held)
    if not np.array_equal(held[held_by_id], catalogue.ids[by_id]):
        raise ValueError(
            f"--index={folder}: holds {len(held)} items, not the {len(catalogue)} of this "
            "catalogue: build it of the same store, or name a FAISS factory"
        )
    about = {name: manifest[name] for name in ("factory", "bytes_per_vector", "tuned")}
    row = np.full(len(items) + 1, -1)  # of the catalogue, by that of the index; the last for none
    row[alive[held_by_id]] = by_id
    return lambda queries, k: row[index.find(loaded, queries, k)[1]], about
