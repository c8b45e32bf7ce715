"""Exact retrieval metrics from embeddings and product labels, in NumPy.

Order and exclusion, for every function here:

- An item is relevant to a query if both carry the same label (product).
- A catalogue item with the query's own id is the query itself and is left out of that query's
  ranking and of its relevant items. It is found by id, never by rank or distance.
- The catalogue is ranked by score, best first; equal scores are ordered by ascending catalogue id.
- A query without any relevant item is unanswerable: it is counted, and left out of every mean.

Definitions follow Musgrave, Belongie and Lim, "A Metric Learning Reality Check" (ECCV 2020), for
MAP@R and R-precision; recall@k is the hit rate that the field reports (1 if any of the k best is
relevant), as in Oh Song et al. (CVPR 2016).
"""

from dataclasses import dataclass

import numpy as np

from retrieval.ranking import counting
from retrieval.ranking.vectors import SIMILARITIES, Vectors, pair  # noqa: F401 (part of this interface)

KS = (1, 5, 10, 20)
PAIRS = 20_000_000  # relevant pairs held at a time


@dataclass(frozen=True)
class Ranking:
    """Where each query's relevant items stand. Arrays have one row a query, [Q] unless said.

    ks: cut-offs for recall. precision_at: cut-offs for precision. depth: rank beyond which `first`
    was not followed, None for to the end. relevant: number of relevant items R. candidates:
    catalogue items ranked (without the query itself). first: 1-based rank of the first relevant
    item, 0 where there is none. best, worst: the same had every tie been broken for or against the
    query. tied, tied_relevant: other, and relevant, items that score as the first relevant one
    does. hits [Q, len(precision_at)]: relevant items among the k best. average_precision: MAP@R's
    summand; r_precision: share of relevant items among the R best; both NaN where R = 0.
    decided: whether float64 had to decide what the filter could not. filter: what it computed in.
    """

    ks: tuple
    precision_at: tuple
    depth: int | None
    relevant: np.ndarray
    candidates: np.ndarray
    first: np.ndarray
    best: np.ndarray
    worst: np.ndarray
    tied: np.ndarray
    tied_relevant: np.ndarray
    hits: np.ndarray
    average_precision: np.ndarray
    r_precision: np.ndarray
    decided: np.ndarray
    filter: str

    @property
    def answerable(self):
        return self.relevant > 0


def rank_queries(
    queries,
    query_labels,
    catalogue=None,
    catalogue_labels=None,
    *,
    query_ids=None,
    catalogue_ids=None,
    ks=KS,
    precision_at=KS,
    similarity="cosine",
    depth=None,
    threads=None,
    filter="auto",
):
    """Ranks the catalogue for every query and returns a `Ranking`.

    The result equals a float64 evaluation of the embeddings (taken as float32) on every query, ties
    included; see `retrieval.ranking.counting` for how.

    queries: [Q, D] float. catalogue: [N, D], or None for the queries against themselves (then a
    query is left out by its row, or by its id where ids are given). Labels and ids: [Q] and [N] of
    integers or strings; items that share an id across the two sets are the same picture.
    similarity: 'cosine', 'dot' or 'euclidean'. depth: do not follow a query's first relevant item
    beyond this rank (faster; the mean rank and the like are then unknown). threads: None for all
    cores. filter: what the score matrix is computed in, 'float32', 'bfloat16', or 'auto' for the
    faster one on this processor; the result is the same. Raises ValueError for embeddings, labels
    or ids that do not fit together.
    """
    queries, catalogue, ql, cl, own, order = _checked(
        queries, query_labels, catalogue, catalogue_labels, query_ids, catalogue_ids
    )
    ks, precision_at = (tuple(sorted({int(k) for k in values})) for values in (ks, precision_at))
    if min(ks + precision_at) < 1:
        raise ValueError(f"k must be at least 1, not {min(ks + precision_at)}")
    left, right = pair(queries, catalogue, similarity)
    relevant = _count(ql, cl, own)
    # One product's pairs grow with the square of its pictures: take the queries in turns then.
    cuts = (np.flatnonzero(np.diff(np.cumsum(relevant) // PAIRS)) + 1).tolist()
    turns = zip([0, *cuts], [*cuts, len(queries)], strict=True)
    parts = []
    for start, end in turns:
        q = slice(start, end)
        if cuts:
            left = Vectors(queries[q], similarity, "queries")
            left.rescale(right.exponent)
        parts.append(
            _rank(
                *(left, right, ql[q], cl, own[q], order, relevant[q], precision_at),
                *(depth, threads, filter),
            )
        )
    columns = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    return Ranking(ks, precision_at, depth, **columns, filter=parts[0][1])


def _rank(left, right, ql, cl, own, order, relevant, precision_at, depth, threads, filter):
    limit = np.maximum(relevant, max(precision_at, default=0))
    counted = counting.count_ranks(
        left, right, ql, cl, own, order, limit, depth=depth, threads=threads, filter=filter
    )
    pairs = counted.positives
    query, position, rank = pairs.query, pairs.position, pairs.rank
    count = len(ql)

    def total(mask, weights=None):
        weights = None if weights is None else weights[mask]
        return np.bincount(query[mask], weights, minlength=count)

    first = np.zeros(count, np.int64)
    first[relevant > 0] = rank[pairs.start[:-1][relevant > 0]]
    at_r = rank <= relevant[query]
    with np.errstate(invalid="ignore"):
        average_precision = total(at_r, position / rank) / relevant
        r_precision = total(at_r) / relevant
    hits = [total(rank <= k) for k in precision_at]
    columns = {
        "relevant": relevant,
        "candidates": len(cl) - (own >= 0),
        "first": first,
        "best": first - counted.before,
        "worst": first - counted.before + counted.tied,
        "tied": counted.tied,
        "tied_relevant": counted.tied_relevant,
        "hits": np.stack(hits, 1) if hits else np.zeros((count, 0), np.int64),
        "average_precision": average_precision,
        "r_precision": r_precision,
        "decided": counted.decided,
    }
    return columns, counted.filter


def _count(query_labels, catalogue_labels, own):
    """Relevant items of each query, the query itself left out."""
    per_label = np.bincount(catalogue_labels, minlength=query_labels.max(initial=-1) + 1)
    itself = (own >= 0) & (catalogue_labels[own] == query_labels)
    return per_label[query_labels] - itself


def _checked(queries, query_labels, catalogue, catalogue_labels, query_ids, catalogue_ids):
    """Arrays of the right shape, labels as shared codes, each query's own row, ids' rank."""
    queries = np.asarray(queries)
    own_set = catalogue is None
    if own_set:
        catalogue, catalogue_labels = queries, query_labels
        if query_ids is None:
            query_ids = np.arange(len(queries))
        catalogue_ids = query_ids
    catalogue = queries if own_set else np.asarray(catalogue)
    for name, values in (("queries", queries), ("catalogue", catalogue)):
        if values.ndim != 2:
            raise ValueError(f"{name} must be [rows, dimensions], not {list(values.shape)}")
        if not len(values):
            raise ValueError(f"{name} is empty: there is nothing to rank")
    if queries.shape[1] != catalogue.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions and the catalogue {catalogue.shape[1]}: "
            "both must come from the same model"
        )
    query_labels = _column(query_labels, len(queries), "query_labels")
    catalogue_labels = _column(catalogue_labels, len(catalogue), "catalogue_labels")
    both = np.concatenate([query_labels, catalogue_labels])
    codes = np.unique(both, return_inverse=True)[1]
    own = np.full(len(queries), -1)
    order = np.arange(len(catalogue))
    if catalogue_ids is not None:
        catalogue_ids = _column(catalogue_ids, len(catalogue), "catalogue_ids")
        order[_by_id(catalogue_ids, "the catalogue")] = np.arange(len(catalogue))
        if query_ids is not None:
            query_ids = _column(query_ids, len(queries), "query_ids")
            _by_id(query_ids, "the queries")
            own = own_rows(query_ids, catalogue_ids)
    return queries, catalogue, codes[: len(queries)], codes[len(queries) :], own, order


def _by_id(ids, name):
    """Rows in the order of their ids."""
    by_id = np.argsort(ids, kind="stable")
    ordered = ids[by_id]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(repeated):
        raise ValueError(
            f"id {str(ordered[repeated[0]])!r} occurs twice in {name} "
            f"({len(repeated)} such ids): ids tell pictures apart"
        )
    return by_id


def own_rows(query_ids, catalogue_ids):
    """Row [Q] of each query in the catalogue, where an item has its id; -1 elsewhere."""
    by_id = np.argsort(catalogue_ids, kind="stable")
    ordered = catalogue_ids[by_id]
    at = np.searchsorted(ordered, query_ids).clip(max=len(ordered) - 1)
    return np.where(ordered[at] == query_ids, by_id[at], -1)


def _column(values, rows, name):
    values = np.asarray(values)
    if values.shape != (rows,):
        raise ValueError(f"{name} must have one entry a row: {list(values.shape)} for {rows} rows")
    return values


def recall_at_k(
    queries, query_labels, catalogue=None, catalogue_labels=None, *, ks=KS, **options
) -> dict:
    """Recall@k over answerable queries as {k: rate}; arguments as for `rank_queries`."""
    ranking = rank_queries(queries, query_labels, catalogue, catalogue_labels, ks=ks, **options)
    return summarize(ranking)["recall@k"]


def summarize(ranking: Ranking) -> dict:
    """Means over answerable queries, and the counts behind them. Rates are NaN if there is none."""
    ok = ranking.answerable
    first = ranking.first[ok]
    result = {
        "recall@k": {k: mean(first <= k) for k in ranking.ks},
        "precision@k": {
            k: mean(hits / k)
            for k, hits in zip(ranking.precision_at, ranking.hits[ok].T, strict=True)
        },
        "map@r": mean(ranking.average_precision[ok]),
        "r_precision": mean(ranking.r_precision[ok]),
        "num_queries": len(ok),
        "num_unanswerable": int((~ok).sum()),
        "num_decided_in_float64": int(ranking.decided.sum()),
        "filter": ranking.filter,
    }
    if ranking.depth is None:
        result["mrr"] = mean(1 / first)
        result["mean_rank"] = mean(first)
        result["median_rank"] = float(np.median(first)) if len(first) else float("nan")
    return result


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
