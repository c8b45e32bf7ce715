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

KS = (1, 5, 10, 20)
SIMILARITIES = ("cosine", "dot", "euclidean")


@dataclass(frozen=True)
class Ranking:
    """Where each query's relevant items stand. Arrays have one row a query, [Q] unless said.

    ks: the cut-offs, ascending. relevant: number of relevant items R. candidates: catalogue items
    ranked (without the query itself). first: 1-based rank of the first relevant item, 0 where
    there is none. best, worst: the same had every tie been broken for or against the query. tied,
    tied_relevant: items, and relevant items, whose score equals that of the first relevant one.
    hits [Q, len(ks)]: relevant items among the k best. average_precision: MAP@R's summand;
    r_precision: share of relevant items among the R best; both NaN where R = 0.
    """

    ks: tuple
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

    @property
    def answerable(self):
        return self.relevant > 0


def similarity_scores(queries, catalogue, similarity="cosine"):
    """Scores float64 [Q, N], higher is nearer; Euclidean distance enters as its negative square."""
    q = np.asarray(queries, np.float64)
    c = np.asarray(catalogue, np.float64)
    if similarity == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        c = c / np.linalg.norm(c, axis=1, keepdims=True)
    elif similarity not in SIMILARITIES:
        raise ValueError(f"similarity={similarity!r} is not one of {', '.join(SIMILARITIES)}")
    scores = q @ c.T
    if similarity == "euclidean":
        scores = 2 * scores - np.square(c).sum(1) - np.square(q).sum(1)[:, None]
    return scores


def rank_queries(
    queries,
    query_labels,
    catalogue=None,
    catalogue_labels=None,
    *,
    query_ids=None,
    catalogue_ids=None,
    ks=KS,
    similarity="cosine",
):
    """Ranks the catalogue for every query and returns a `Ranking`.

    queries: [Q, D] float. catalogue: [N, D], or None for the queries against themselves (then a
    query is left out by its row, or by its id where ids are given). Labels and ids: [Q] and [N] of
    integers or strings; items that share an id across the two sets are the same picture.
    """
    queries, catalogue, ql, cl, own, order = _checked(
        queries, query_labels, catalogue, catalogue_labels, query_ids, catalogue_ids
    )
    ks = tuple(sorted({int(k) for k in ks}))
    rows = []
    block = max(1, 2**24 // max(1, len(catalogue)))
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        scores = similarity_scores(queries[part], catalogue, similarity)
        for s, label, self_row in zip(scores, ql[part], own[part], strict=True):
            rows.append(_rank_one(s, cl == label, self_row, order, ks))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 10
    ints = [np.array(c, np.int64) for c in columns[:8]]
    ints[7] = ints[7].reshape(len(rows), len(ks))
    return Ranking(ks, *ints, *(np.array(c, np.float64) for c in columns[8:]))


def _rank_one(scores, relevant, self_row, order, ks):
    if self_row >= 0:
        keep = np.arange(len(scores)) != self_row
        scores, relevant, order = scores[keep], relevant[keep], order[keep]
    total = int(relevant.sum())
    if not total:
        return 0, len(scores), 0, 0, 0, 0, 0, [0] * len(ks), np.nan, np.nan
    found = relevant[np.lexsort((order, -scores))]
    threshold = scores[relevant].max()
    above, equal = int((scores > threshold).sum()), scores == threshold
    tied, tied_relevant = int(equal.sum()), int((equal & relevant).sum())
    cumulative = np.cumsum(found)
    hits = [int(cumulative[min(k, len(found)) - 1]) for k in ks]
    at_r = found[:total]
    precision = cumulative[:total] / np.arange(1, total + 1)
    return (
        *(total, len(scores), int(found.argmax()) + 1, above + 1, above + tied - tied_relevant + 1),
        *(tied, tied_relevant, hits, float((precision * at_r).sum() / total)),
        float(at_r.sum() / total),
    )


def _checked(queries, query_labels, catalogue, catalogue_labels, query_ids, catalogue_ids):
    """Arrays of the right shape, labels as shared codes, each query's own row, ids' rank."""
    queries = _embeddings(queries, "queries")
    own_set = catalogue is None
    if own_set:
        catalogue, catalogue_labels = queries, query_labels
        if query_ids is None:
            query_ids = np.arange(len(queries))
        catalogue_ids = query_ids
    catalogue = _embeddings(catalogue, "catalogue")
    if not len(catalogue):
        raise ValueError("the catalogue is empty: there is nothing to rank")
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
        by_id = np.argsort(catalogue_ids, kind="stable")
        ordered = catalogue_ids[by_id]
        repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(repeated):
            raise ValueError(f"id {str(ordered[repeated[0]])!r} occurs twice in the catalogue")
        order[by_id] = np.arange(len(catalogue))
        if query_ids is not None:
            query_ids = _column(query_ids, len(queries), "query_ids")
            at = np.searchsorted(ordered, query_ids).clip(max=len(ordered) - 1)
            own = np.where(ordered[at] == query_ids, by_id[at], -1)
    return queries, catalogue, codes[: len(queries)], codes[len(queries) :], own, order


def _embeddings(values, name):
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"{name} must be [rows, dimensions], not of shape {list(values.shape)}")
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} such rows)")
    return values


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

    def mean(values):
        return float(np.mean(values)) if len(values) else float("nan")

    return {
        "recall@k": {k: mean(first <= k) for k in ranking.ks},
        "precision@k": {
            k: mean(h / k) for k, h in zip(ranking.ks, ranking.hits[ok].T, strict=True)
        },
        "map@r": mean(ranking.average_precision[ok]),
        "r_precision": mean(ranking.r_precision[ok]),
        "mrr": mean(1 / first),
        "mean_rank": mean(first),
        "median_rank": float(np.median(first)) if len(first) else float("nan"),
        "num_queries": len(ok),
        "num_unanswerable": int((~ok).sum()),
    }
