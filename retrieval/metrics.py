"""Exact retrieval metrics from embeddings and product labels, in NumPy.

Order and exclusion, for every function here:

- An item is relevant to a query if both have the same label (product).
- The query itself is excluded from its results and its relevant items. It is identified by id or by
  `excluded`, never by rank or distance.
- The catalogue is ranked by similarity, best first; ties are ordered by ascending catalogue id.
- A query without any relevant item is unanswerable: it is counted, and excluded from every mean.

Definitions follow Musgrave, Belongie and Lim, "A Metric Learning Reality Check" (ECCV 2020), for
MAP@R and R-precision; recall@k is the hit rate that the field reports (1 if any of the k best is
relevant), as in Oh Song et al. (CVPR 2016).
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from retrieval.ranking import counting
from retrieval.ranking.relevant import relevant_pairs
from retrieval.ranking.vectors import SIMILARITIES, pair

__all__ = ["KS", "SIMILARITIES", "Ranking", "rank_queries", "recall_at_k", "summarize"]

KS = (1, 5, 10, 20)
PAIRS = 20_000_000  # relevant pairs held at a time
LARGEST_FLOAT = 2**24  # float labels up to here are exact in float32


@dataclass(frozen=True)
class Ranking:
    """Ranks of each query's relevant items. Arrays are [Q] unless stated otherwise.

    Attributes:
      ks: cut-offs of recall.
      precision_at: cut-offs of precision.
      depth: rank up to which `first` was determined; None: no limit.
      relevant: number of relevant items R.
      candidates: number of catalogue items ranked, without the excluded ones.
      first: rank of the first relevant item, from 1; 0 if there is none.
      best, worst: the same if ties were resolved for or against the query.
      tied, tied_relevant: number of irrelevant and of relevant items with the score of the first
        relevant item.
      hits: [Q, len(precision_at)], relevant items among the k best.
      average_precision: the query's term of MAP@R; NaN if R = 0.
      r_precision: fraction of relevant items among the R best; NaN if R = 0.
      decided: whether the query needed float64.
      filter: name of the filter that ran.
    """

    ks: tuple[int, ...]
    precision_at: tuple[int, ...]
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
    def answerable(self) -> np.ndarray:
        return self.relevant > 0


def rank_queries(
    queries: ArrayLike,
    query_labels: ArrayLike,
    catalogue: ArrayLike | None = None,
    catalogue_labels: ArrayLike | None = None,
    *,
    query_ids: ArrayLike | None = None,
    catalogue_ids: ArrayLike | None = None,
    excluded: tuple[ArrayLike, ArrayLike] | None = None,
    ks: Iterable[int] = KS,
    precision_at: Iterable[int] = KS,
    similarity: str = "cosine",
    depth: int | None = None,
    threads: int | None = None,
    filter: str = "auto",
) -> Ranking:
    """Ranks the catalogue for every query.

    The order is that of the exact similarities of the rows as given. The ranks equal those of a
    float64 evaluation, except where rounding decides that one (see `retrieval.ranking.counting`).
    Similarities are ties if they differ by less than about 2**-69 of the product of the rows'
    lengths (euclidean: of the squared distance); float64 resolves 2**-53. Rows may have lengths up
    to 1e300.

    Args:
      queries: float16, float32 or float64 [Q, D].
      query_labels: int or str [Q] or [Q, 1], the product of each query. Floats are accepted if
        they are whole numbers of at most 2**24.
      catalogue: [N, D]; None: each query is searched among the other queries.
      catalogue_labels: [N] or [N, 1].
      query_ids, catalogue_ids: distinct int or str [Q] and [N]. Catalogue ids break ties; items
        with equal ids in the two sets are the same image, unless `excluded` is given.
      excluded: (query rows [E], catalogue rows [E]), pairs to exclude instead of those with equal
        ids. None without ids and without a catalogue: each query's own row.
      ks: cut-offs of recall@k. precision_at: cut-offs of precision@k.
      similarity: 'cosine', 'dot' or 'euclidean'.
      depth: determine the rank of the first relevant item only up to this rank: faster, but the
        mean rank and similar figures are unknown.
      threads: None for all cores.
      filter: number format of the score matrix, 'float32', 'bfloat16', 'int8', or 'auto' for the
        fastest one on this processor and these scores. The result is the same.

    Raises:
      ValueError: for embeddings, labels, ids or pairs that do not fit together.
    """
    asking, items, ql, cl, pairs, order = _checked(
        queries, query_labels, catalogue, catalogue_labels, query_ids, catalogue_ids, excluded
    )
    recall_at, hits_at = _cut_offs("ks", ks), _cut_offs("precision_at", precision_at)
    left, right = pair(asking, items, similarity)
    settings = counting.Settings(depth, threads, filter)
    relevant = _count(ql, cl, pairs)
    # The number of pairs of a product grows with the square of its images: rank in several passes.
    cuts = (np.flatnonzero(np.diff(np.cumsum(relevant) // PAIRS)) + 1).tolist()
    parts = []
    for start, end in zip([0, *cuts], [*cuts, len(asking)], strict=True):
        rows = slice(start, end)
        low, high = np.searchsorted(pairs[0], [start, end])
        out = (pairs[0][low:high] - start, pairs[1][low:high])
        some = left.take(rows) if cuts else left
        parts.append(
            _rank(some, right, ql[rows], cl, out, order, relevant[rows], hits_at, settings)
        )
    columns = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    return Ranking(recall_at, hits_at, depth, **columns, filter=parts[0][1])


def _rank(left, right, ql, cl, excluded, order, relevant, precision_at, settings):
    """Columns of a `Ranking`, and the name of the filter."""
    count = len(ql)
    candidates = len(cl) - np.bincount(excluded[0], minlength=count)
    limit = np.maximum(relevant, min(max(precision_at, default=0), len(cl)))
    counted = counting.count_ranks(left, right, ql, cl, excluded, order, limit, settings)
    pairs = counted.positives
    query, position, rank = pairs.query, pairs.position, pairs.rank

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
        "candidates": candidates,
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


def _cut_offs(name, values):
    """Distinct ascending cut-offs."""
    try:
        whole = tuple(sorted({operator.index(k) for k in values}))
    except TypeError:
        raise ValueError(f"{name} takes whole numbers, not {values!r}") from None
    if whole and whole[0] < 1:
        raise ValueError(f"{name}: k must be at least 1, not {whole[0]}")
    return whole


def _count(query_labels, catalogue_labels, excluded):
    """Number of relevant items of each query [Q], without excluded items."""
    per_label = np.bincount(catalogue_labels, minlength=query_labels.max(initial=-1) + 1)
    query, item = excluded
    out = np.bincount(
        query[catalogue_labels[item] == query_labels[query]], minlength=len(query_labels)
    )
    return per_label[query_labels] - out


def _checked(
    queries, query_labels, catalogue, catalogue_labels, query_ids, catalogue_ids, excluded
):
    """Checked arrays, labels as shared codes, excluded pairs, and the order of the ids."""
    queries = _rows(queries, "queries")
    own_set = catalogue is None
    if own_set:
        if catalogue_labels is not None or catalogue_ids is not None:
            raise ValueError("catalogue_labels and catalogue_ids need a catalogue")
        catalogue, catalogue_labels, catalogue_ids = queries, query_labels, query_ids
    else:
        catalogue = _rows(catalogue, "catalogue")
        if catalogue_labels is None:
            raise ValueError("catalogue_labels are missing")
    if queries.shape[1] != catalogue.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions and the catalogue {catalogue.shape[1]}: "
            "both must come from the same model"
        )
    labels = (
        _column(query_labels, len(queries), "query_labels"),
        _column(catalogue_labels, len(catalogue), "catalogue_labels"),
    )
    ql, cl = _codes(*labels, "labels")
    order = np.arange(len(catalogue))
    q_ids = c_ids = None
    if query_ids is not None:
        q_ids = _column(query_ids, len(queries), "query_ids")
    if catalogue_ids is not None:
        c_ids = _column(catalogue_ids, len(catalogue), "catalogue_ids")
    if c_ids is not None:
        if q_ids is not None:
            q_ids, c_ids = _codes(q_ids, c_ids, "ids")
        order[_by_id(c_ids, "the catalogue", catalogue_ids)] = np.arange(len(catalogue))
    if q_ids is not None:
        _by_id(q_ids, "the queries", query_ids)
    if excluded is not None:
        excluded = _pairs(excluded, len(queries), len(catalogue))
    elif own_set:
        excluded = (np.arange(len(queries)),) * 2
    elif q_ids is not None and c_ids is not None:
        excluded = equal_pairs(q_ids, c_ids)
    else:
        excluded = (np.zeros(0, np.int64),) * 2
    return queries, catalogue, ql, cl, excluded, order


def _rows(values, name):
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"{name} must be [rows, dimensions], not {list(values.shape)}")
    if not len(values):
        raise ValueError(f"{name} is empty: there is nothing to rank")
    return values


def _pairs(excluded, num_queries, num_items):
    """Distinct (query, item) pairs, ordered by query."""
    try:
        query, item = (np.asarray(each).reshape(-1) for each in excluded)
    except (TypeError, ValueError):
        raise ValueError("excluded must be (query rows [E], catalogue rows [E])") from None
    for rows, count in ((query, num_queries), (item, num_items)):
        if len(rows) and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= count):
            raise ValueError(f"excluded must hold rows from 0 to {count - 1}")
    if len(query) != len(item):
        raise ValueError(f"excluded holds {len(query)} query rows for {len(item)} catalogue rows")
    pair = np.unique(query.astype(np.int64) * num_items + item.astype(np.int64))
    return np.divmod(pair, num_items)


def _by_id(ids, name, given):
    """Rows in the order of their ids."""
    by_id = np.argsort(ids, kind="stable")
    ordered = ids[by_id]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(repeated):
        first = np.asarray(given).reshape(-1)[by_id[repeated[0]]]
        raise ValueError(
            f"id {str(first)!r} occurs twice in {name} "
            f"({len(repeated)} such ids): ids must be distinct"
        )
    return by_id


def equal_pairs(query_ids: np.ndarray, catalogue_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows with equal ids, ordered by query: (query [E], item [E]). Ids may repeat."""
    return relevant_pairs(query_ids, catalogue_ids, (np.zeros(0, np.int64),) * 2)


def _column(values, rows, name):
    """Labels or ids as an array [rows] that compares exactly."""
    values = np.asarray(values)
    if values.shape == (rows, 1):
        values = values[:, 0]
    if values.shape != (rows,):
        raise ValueError(
            f"{name} must have one entry per row: {list(values.shape)} for {rows} rows"
        )
    if values.dtype.kind == "f":
        limit = min(LARGEST_FLOAT, 2 ** (np.finfo(values.dtype).nmant + 1))  # exact up to here
        whole = (np.abs(values) <= limit) & (values == np.round(values))
        if not whole.all():
            raise ValueError(
                f"{name}: {values[~whole][0]} is not a class; floats must be whole numbers up to "
                f"{limit}"
            )
        values = values.astype(np.int64)
    if values.dtype.kind == "O":
        if all(isinstance(each, str) for each in values):
            return values.astype(str)
        if all(isinstance(each, int) and not isinstance(each, bool) for each in values):
            return values  # Python's integers compare exactly, whatever their size
        raise ValueError(f"{name} must be integers or strings, all of one kind")
    if values.dtype.kind not in "biuSU":
        raise ValueError(f"{name} must be integers or strings, not {values.dtype}")
    return values


def _codes(queries, catalogue, name):
    """Values [Q] and [N] as codes that are equal if the values are, and ordered as they are."""
    text = {each.dtype.kind in "SU" for each in (queries, catalogue)}
    if len(text) > 1:
        raise ValueError(
            f"{name}: {queries.dtype} of the queries and {catalogue.dtype} of the catalogue "
            "cannot be compared; give integers or strings for both"
        )
    both = [queries, catalogue]
    if {each.dtype.kind for each in both} == {"S", "U"}:
        both = [_text(each, name) for each in both]
    elif not text.pop() and np.result_type(*both).kind == "f":
        both = [each.astype(object) for each in both]  # int64 beside uint64: no common type
    codes = np.unique(np.concatenate(both), return_inverse=True)[1]
    return codes[: len(queries)], codes[len(queries) :]


def _text(values, name):
    try:
        return values if values.dtype.kind == "U" else np.char.decode(values, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {error.object!r} is not UTF-8") from None


def recall_at_k(
    queries: ArrayLike,
    query_labels: ArrayLike,
    catalogue: ArrayLike | None = None,
    catalogue_labels: ArrayLike | None = None,
    *,
    ks: Iterable[int] = KS,
    **options: Any,
) -> dict[int, float]:
    """Recall@k over answerable queries.

    Args:
      queries, query_labels, catalogue, catalogue_labels, ks, options: as for `rank_queries`.

    Returns:
      {k: rate}.
    """
    ranking = rank_queries(queries, query_labels, catalogue, catalogue_labels, ks=ks, **options)
    return summarize(ranking)["recall@k"]


def summarize(ranking: Ranking) -> dict[str, Any]:
    """Returns means over answerable queries, and counts. Without such queries, rates are NaN."""
    ok = ranking.answerable
    first = ranking.first[ok]
    result = {
        "recall@k": {k: mean(first <= k) for k in ranking.ks},
        "precision@k": {
            k: mean(hits / float(k))
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


def mean(values: ArrayLike) -> float:
    """The mean of values [n] as a float; NaN if n is 0."""
    values = np.asarray(values)
    return float(values.mean()) if len(values) else float("nan")
