"""Methods that improve a ranking: query expansion, database augmentation and re-ranking.

All methods work on cosine similarity. Each reports its gain in recall and MAP@R, and its cost in
seconds.
"""

import dataclasses
import math
import time

import numpy as np

from retrieval import metrics, progress
from retrieval.catalogue import neighbours
from retrieval.evaluation import identity
from retrieval.evaluation.lists import first_right, nearest
from retrieval.evaluation.records import Record

METHODS = ("aqe", "dba", "k_reciprocal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranked(Record):
    """The gain of a method.

    Attributes:
      recall: recall@k with the method.
      map_at_r: MAP@R with it; None for k_reciprocal, which re-ranks only the first hundred results.
      seconds: cost for all queries.
      gain: gain in recall at the smallest k.
      seconds_per_point: cost per 0.01 of that gain; NaN without a gain.
    """

    recall: dict[int, float]
    map_at_r: float | None = None
    seconds: float
    gain: float
    seconds_per_point: float


def expand(queries, catalogue, same=None, count=5, alpha=3.0):
    """Alpha query expansion: adds to each query its neighbors, weighted by similarity**alpha.

    Source: Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    2018.

    Args:
      queries: [Q, D], rows of unit length.
      catalogue: [N, D], rows of unit length.
      same: the `identity.Same` of both; None if no item is a query itself.
      count: number of neighbors.
      alpha: exponent of the weights.

    Returns:
      float32 [Q, D], rows of unit length.
    """
    k = min(count + (same.most if same else 0), len(catalogue))
    scores, rows = nearest(queries, catalogue, k)
    itself = same.among(rows) if same else np.full(rows.shape, False)
    counted = ~itself & (np.cumsum(~itself, axis=1) <= count)
    weights = np.where(counted, np.maximum(scores, 0), 0) ** alpha
    return neighbours.prepare(queries + np.einsum("qk,qkd->qd", weights, catalogue[rows]), "cosine")


def average(catalogue, count=5, alpha=3.0):
    """Database augmentation: `expand` applied to the catalogue's own items.

    Source: Arandjelovic and Zisserman, "Three things everyone should know to improve object
    retrieval", CVPR 2012.
    """
    rows = np.arange(len(catalogue))
    return expand(catalogue, catalogue, identity.Same(rows, rows, len(rows)), count, alpha)


def k_reciprocal(queries, catalogue, same, k1=20, depth=100, weight=0.3):
    """Re-ranks lists by shared reciprocal neighbors.

    The score of an item increases with the Jaccard overlap of its `k1` neighbors with the query's.
    Only reciprocal neighbors count. This is a short form of Zhong et al.,
    "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), without its local
    query expansion.

    Args:
      queries, catalogue, same: as for `expand`.
      k1: number of neighbors.
      depth: results to re-rank per query.
      weight: weight of the original score in the new one.

    Returns:
      (scores [Q, depth], rows [Q, depth]), best first.
    """
    k = min(k1 + 1, len(catalogue))
    similar, near = nearest(catalogue, catalogue, k)
    reach = similar[:, -1]  # minimum similarity of a query to be among an item's neighbors
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


def compare(queries, catalogue, evaluation, methods) -> dict[str, Reranked]:
    """Evaluates re-ranking methods.

    Args:
      queries, catalogue: `Embedded`.
      evaluation: the `figures.Evaluation` of both, by cosine.
      methods: names from `METHODS`.
    """
    q, c = (neighbours.prepare(e.embeddings, "cosine") for e in (queries, catalogue))
    same, before = evaluation.same, evaluation.figures.recall
    result = {}
    for method in methods:
        start = time.perf_counter()
        map_at_r = None
        if method == "k_reciprocal":
            _, rows = k_reciprocal(q, c, same)
            seconds = time.perf_counter() - start
            right = catalogue.products[rows] == queries.products[:, None]
            place = first_right(right, same.among(rows))
            # Items beyond the lists keep their rank.
            place = np.where(np.isfinite(place), place, evaluation.ranking.first)
            place = place[evaluation.ranking.answerable]
            recall = {k: metrics.mean(place <= k) for k in before}
        else:
            items = c if method == "aqe" else average(c)
            moved = expand(q, c, same) if method == "aqe" else q
            seconds = time.perf_counter() - start
            ranking = metrics.rank_queries(
                moved,
                queries.products,
                items,
                catalogue.products,
                query_ids=queries.ids,
                catalogue_ids=catalogue.ids,
                excluded=same.pairs,
                ks=tuple(before),
            )
            summary = metrics.summarize(ranking)
            recall, map_at_r = summary["recall@k"], summary["map@r"]
        first = min(before)
        gain = recall[first] - before[first]
        result[method] = Reranked(
            recall=recall,
            map_at_r=map_at_r,
            seconds=seconds,
            gain=gain,
            seconds_per_point=seconds / (100 * gain) if gain > 0 else math.nan,
        )
    return result
