"""What a search can still gain after the model: expanded queries, averaged catalogues, re-ranking.

Each works on cosine similarity and reports its gain in recall and MAP@R with its cost in seconds,
so that a point gained can be weighed against the time it takes.
"""

import time

import numpy as np

from retrieval import metrics, progress
from retrieval.catalogue import neighbours
from retrieval.evaluation import identity
from retrieval.evaluation.lists import first_right, nearest

METHODS = ("aqe", "dba", "k_reciprocal")


def expand(queries, catalogue, same=None, count=5, alpha=3.0):
    """Alpha query expansion: each row [Q, D] plus its neighbours, weighted by similarity**alpha.

    same: `identity.Same`, the items that are the queries themselves. Unit rows in and out.
    (Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.)
    """
    k = min(count + (same.most if same else 0), len(catalogue))
    scores, rows = nearest(queries, catalogue, k)
    itself = same.among(rows) if same else np.full(rows.shape, False)
    counted = ~itself & (np.cumsum(~itself, axis=1) <= count)
    weights = np.where(counted, np.maximum(scores, 0), 0) ** alpha
    return neighbours.prepare(queries + np.einsum("qk,qkd->qd", weights, catalogue[rows]), "cosine")


def average(catalogue, count=5, alpha=3.0):
    """Database augmentation: the same for the catalogue's own items (Arandjelovic and Zisserman,
    "Three things everyone should know to improve object retrieval", CVPR 2012)."""
    rows = np.arange(len(catalogue))
    same = identity.Same(rows, rows, len(rows))
    return expand(catalogue, catalogue, same, count, alpha)


def k_reciprocal(queries, catalogue, same, k1=20, depth=100, weight=0.3):
    """Lists re-ranked by shared reciprocal neighbours: (scores [Q, depth], rows [Q, depth]).

    An item gains by the Jaccard overlap of its own k1 neighbours with the query's, of which only
    those count that have each other among their neighbours. A short form of Zhong et al.,
    "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), without its local
    query expansion. weight: share of the first score in the new one.
    """
    k = min(k1 + 1, len(catalogue))
    similar, near = nearest(catalogue, catalogue, k)
    reach = similar[:, -1]  # how near a query must be to come among an item's neighbours
    scores, rows = nearest(queries, catalogue, min(depth + same.most, len(catalogue)))
    scores = np.where(same.among(rows), -np.inf, scores)
    mutual = [set(n.tolist()) for n in near]
    kept = [{j for j in n if i in mutual[j]} | {i} for i, n in enumerate(mutual)]
    new = np.full(scores.shape, -np.inf)
    lists = progress.track(zip(scores, rows, strict=True), len(scores), "k_reciprocal")
    for q, (s, r) in enumerate(lists):
        mine = set(r[:k][s[:k] >= reach[r[:k]]].tolist())
        for c, j in enumerate(r):
            if np.isfinite(s[c]):
                both = len(mine & kept[j])
                overlap = both / max(1, len(mine) + len(kept[j]) - both)
                new[q, c] = weight * s[c] + (1 - weight) * overlap
    order = np.argsort(-new, axis=1, kind="stable")
    return np.take_along_axis(new, order, 1), np.take_along_axis(rows, order, 1)


def compare(queries, catalogue, evaluation, methods):
    """Figures {method: {'recall@k', 'map@r', 'seconds', 'gain', 'seconds_per_point'}}.

    queries, catalogue: `store.Embedded`. evaluation: what `evaluation.evaluate` made of them, by
    cosine. k_reciprocal gives no MAP@R, as it orders the first hundred only. A point is a hundredth
    of recall@k at the smallest k.
    """
    q, c = (neighbours.prepare(e.embeddings, "cosine") for e in (queries, catalogue))
    same = evaluation.same
    before = evaluation.figures["recall@k"]
    ks = tuple(before)
    result = {}
    for method in methods:
        start = time.perf_counter()
        if method == "k_reciprocal":
            _, rows = k_reciprocal(q, c, same)
            seconds = time.perf_counter() - start
            itself = same.among(rows)
            right = catalogue.products[rows] == queries.products[:, None]
            place = first_right(right, itself)
            # What lies beyond the lists stays where it was.
            place = np.where(np.isfinite(place), place, evaluation.ranking.first)
            place = place[evaluation.ranking.answerable]
            figures = {"recall@k": {k: metrics.mean(place <= k) for k in ks}}
        else:
            items = c if method == "aqe" else average(c)
            moved = expand(q, c, same) if method == "aqe" else q
            seconds = time.perf_counter() - start
            ranking = metrics.rank_queries(
                moved, queries.products, items, catalogue.products,
                query_ids=queries.ids, catalogue_ids=catalogue.ids, excluded=same.pairs,
                ks=ks,
            )  # fmt: skip
            summary = metrics.summarize(ranking)
            figures = {name: summary[name] for name in ("recall@k", "map@r")}
        gain = figures["recall@k"][ks[0]] - before[ks[0]]
        figures |= {"seconds": seconds, "gain": gain}
        figures["seconds_per_point"] = seconds / (100 * gain) if gain > 0 else float("nan")
        result[method] = figures
    return result
