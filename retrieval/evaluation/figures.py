"""The reported figures of an embedding: rates with intervals, by category, by product."""

import dataclasses
import functools

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from retrieval import metrics
from retrieval.evaluation import identity
from retrieval.evaluation.index_loss import IndexLoss
from retrieval.evaluation.intervals import FEW, bootstrap, intervals, percentiles
from retrieval.evaluation.lists import in_order, nearest, tracked, without
from retrieval.evaluation.records import Record
from retrieval.evaluation.rejection import Rejection
from retrieval.evaluation.rerank import Reranked
from retrieval.evaluation.verdict import Verdict
from retrieval.ranking import exact, kernels, vectors
from retrieval.ranking.groups import where
from retrieval.ranking.relevant import relevant_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Record):
    """A model at a checkpoint."""

    checkpoint: str | None
    step: int | None = None
    model: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Record):
    """Paths of stored embeddings (catalogue: None if queries were searched among themselves), and
    the models that computed them, if known."""

    queries: str
    catalogue: str | None
    made_by: list[Source]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties(Record):
    """Recall@k if ties were resolved in favor of the query, against it, or at random."""

    num_queries_with_ties: int
    best: dict[int, float]
    worst: dict[int, float]
    expected: dict[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CategoryFigures(Record):
    """Figures of the queries of one category. interval: 95% interval of recall at the smallest k;
    None for a category of few products."""

    num_queries: int
    num_unanswerable: int
    recall: dict[int, float]
    map_at_r: float
    interval: tuple[float, float] | None = None

    def to_json(self):
        data = super().to_json()
        if self.interval:  # spelled after its k
            data[f"recall@{min(self.recall)}_interval95"] = data.pop("interval95")
        return data

    @classmethod
    def from_json(cls, data):
        interval = [value for name, value in data.items() if name.endswith("_interval95")]
        return super().from_json(data | {"interval95": interval[0]} if interval else data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductLevel(Record):
    """Recall over products instead of images.

    Attributes:
      recall: recall over products, each ranked by its best image.
      macro_recall: recall over images, averaged over query products instead of queries.
      num_products: products of the answerable queries.
      num_catalogue_products: products in the catalogue.
    """

    recall: dict[int, float]
    macro_recall: dict[int, float]
    num_products: int
    num_catalogue_products: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures(Record):
    """The figures of one evaluation, as stored in `…-eval.json`.

    Rates are means over answerable queries; dictionaries of rates are keyed by k.

    Attributes:
      verdict: the verdict in one sentence; None for a baseline.
      source: what was evaluated; None for a baseline.
      recall, precision, map_at_r, r_precision, mrr, mean_rank, median_rank: see `metrics`.
      num_queries, num_unanswerable, num_catalogue: numbers of queries and catalogue items.
      num_self_excluded: queries that are in the catalogue and were excluded from their own results.
      excluded_by: {rule: number of these}, see `identity.Same`.
      num_byte_equal_copies: queries with a byte-equal copy in the catalogue, None if unknown.
      num_decided_in_float64: queries whose ranks needed float64.
      filter: the number format in which scores were computed first.
      similarity: 'cosine', 'dot' or 'euclidean'.
      intervals: {'recall@1', …, 'map@r', 'mrr': 95% confidence interval}.
      ties, product_level: see the classes.
      per_category: {category: figures}; empty if no query has a category.
      index: comparison of an approximate index with exact search, if evaluated.
      rerank: {method: its gain}, for the methods that were evaluated.
      rejection: the effect of rejecting first results with low scores; None for a baseline.
      raw_pixels, color_histogram, frozen_backbone, frozen_backbone_color: the figures of the
        baselines, if they were evaluated.
    """

    verdict: Verdict | None = None
    source: Source | Files | None = dataclasses.field(default=None, metadata={"inlined": True})
    recall: dict[int, float]
    precision: dict[int, float]
    map_at_r: float
    r_precision: float
    num_queries: int
    num_unanswerable: int
    num_decided_in_float64: int
    filter: str
    mrr: float
    mean_rank: float
    median_rank: float
    num_catalogue: int
    num_self_excluded: int
    similarity: str
    intervals: dict[str, tuple[float, float]]
    ties: Ties
    per_category: dict[str, CategoryFigures]
    product_level: ProductLevel
    excluded_by: dict[str, int] = dataclasses.field(default_factory=dict)
    num_byte_equal_copies: int | None = None
    index: IndexLoss | None = None
    rerank: dict[str, Reranked] = dataclasses.field(default_factory=dict)
    rejection: Rejection | None = None
    raw_pixels: "Figures | None" = None
    color_histogram: "Figures | None" = None
    frozen_backbone: "Figures | None" = None
    frozen_backbone_color: "Figures | None" = None

    @property
    def models(self) -> list[Source]:
        """The models that computed the embeddings, if known."""
        if self.source is None:
            return []
        return self.source.made_by if isinstance(self.source, Files) else [self.source]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
      figures: the reported figures.
      ranking: the `metrics.Ranking` from which they are computed.
      scores, rows: float and int [Q, top]: the retrieved catalogue rows, best first, without the
        query itself; -inf and -1 beyond the end of the catalogue. Larger scores are nearer, so
        distances are negative.
      same: the `identity.Same` of both sets: which items are the queries themselves.
    """

    figures: Figures
    ranking: metrics.Ranking
    scores: np.ndarray
    rows: np.ndarray
    same: identity.Same


def evaluate(
    queries,
    catalogue=None,
    *,
    similarity="cosine",
    ks=metrics.KS,
    top=20,
    threads=None,
    filter="auto",
) -> Evaluation:
    """Evaluates queries against a catalogue.

    Args:
      queries: `Embedded`.
      catalogue: `Embedded`; None: each query is searched among the others.
      similarity: 'cosine', 'dot' or 'euclidean'.
      ks: cut-offs of recall@k and precision@k.
      top: retrieved items to list per query.
      threads: number of threads; None for all cores.
      filter: as in `metrics.rank_queries`.

    Raises:
      ValueError: the sets do not fit together or hold NaN, or no query has a relevant item.
    """
    own_set = catalogue is None
    catalogue = queries if own_set else catalogue
    same = identity.same_images(queries, catalogue)
    ranking = metrics.rank_queries(
        queries.embeddings,
        queries.products,
        None if own_set else catalogue.embeddings,
        None if own_set else catalogue.products,
        query_ids=queries.ids,
        catalogue_ids=None if own_set else catalogue.ids,
        excluded=same.pairs,
        ks=ks,
        precision_at=ks,
        similarity=similarity,
        threads=threads,
        filter=filter,
    )
    if not ranking.answerable.any():
        if own_set:
            raise ValueError(
                "no query has a relevant catalogue item: no two queries have the same product, so "
                "there is nothing to find among the queries; give a catalogue"
            )
        raise ValueError(
            "no query has a relevant catalogue item: do both sets spell their products alike? "
            f"The first query's is {str(queries.products[0])!r}, the first item's "
            f"{str(catalogue.products[0])!r}"
        )
    summary = metrics.summarize(ranking)
    with threadpool_limits(threads, "blas"):
        of_products = product_level(queries, catalogue, ranking, similarity, same)
    if threads:
        faiss.omp_set_num_threads(threads)  # the end of the limit may have reset it
    figures = Figures(
        recall=summary.pop("recall@k"),
        precision=summary.pop("precision@k"),
        map_at_r=summary.pop("map@r"),
        **summary,
        num_catalogue=len(catalogue),
        num_self_excluded=int((ranking.candidates < len(catalogue)).sum()),
        excluded_by=same.excluded_by,
        num_byte_equal_copies=same.num_byte_equal_copies,
        similarity=similarity,
        intervals=intervals(ranking, queries.products),
        ties=ties(ranking),
        per_category=by_category(ranking, queries),
        product_level=of_products,
    )
    # More than `top`: the query itself may be among them, and if items tie at the end of the list,
    # FAISS keeps an arbitrary one.
    near = min(2 * top + same.most, len(catalogue))
    found = nearest(queries.embeddings, catalogue.embeddings, near, similarity)
    found = in_order(*found, queries, catalogue, similarity, min(top + same.most, near))
    scores, rows = without(*found, same.among(found[1]), top)
    return Evaluation(figures, ranking, scores, rows, same)


def ties(ranking) -> Ties:
    """Recall@k if ties were resolved in favor of the query, against it, or at random."""
    ok = ranking.answerable
    best, worst = ranking.best[ok], ranking.worst[ok]
    others, relevant = ranking.tied[ok], ranking.tied_relevant[ok]
    expected = {}
    for k in ranking.ks:
        # `slots` of the tied items are among the k best. The probability that none of them is
        # relevant is C(others, slots) / C(others + relevant, slots).
        slots = np.clip(k - best + 1, 0, others + 1)
        missed = np.ones(len(slots))
        for i in range(slots.max(initial=0)):
            factor = np.maximum(others - i, 0) / np.maximum(others + relevant - i, 1)
            missed *= np.where(i < slots, factor, 1)
        expected[k] = metrics.mean(1 - missed)
    return Ties(
        num_queries_with_ties=int((others > 0).sum()),
        best={k: metrics.mean(best <= k) for k in ranking.ks},
        worst={k: metrics.mean(worst <= k) for k in ranking.ks},
        expected=expected,
    )


def by_category(ranking, queries) -> dict[str, CategoryFigures]:
    """Figures of the queries of each category; empty if no query has one."""
    if not (queries.categories != "").any():
        return {}
    result = {}
    for name in np.unique(queries.categories):
        mask = queries.categories == name
        ok = mask & ranking.answerable
        first, products = ranking.first[ok], queries.products[ok]
        interval = None
        if len(np.unique(products)) >= FEW:
            right = (first <= ranking.ks[0]).astype(float)[:, None]
            (interval,) = percentiles(bootstrap(right, products))
        result[str(name)] = CategoryFigures(
            num_queries=int(mask.sum()),
            num_unanswerable=int(mask.sum() - ok.sum()),
            recall={k: metrics.mean(first <= k) for k in ranking.ks},
            map_at_r=metrics.mean(ranking.average_precision[ok]),
            interval=interval,
        )
    return result


def product_level(queries, catalogue, ranking, similarity, same) -> ProductLevel:
    """Recall over products instead of images, see `ProductLevel`."""
    ok = ranking.answerable
    products = len(np.unique(catalogue.products))
    several = products < len(catalogue)
    first = shelf_ranks(queries, catalogue, similarity, same) if several else ranking.first
    codes = np.unique(queries.products[ok], return_inverse=True)[1]
    size = np.maximum(np.bincount(codes), 1)
    return ProductLevel(
        recall={k: metrics.mean(first[ok] <= k) for k in ranking.ks},
        macro_recall={
            k: metrics.mean(np.bincount(codes, ranking.first[ok] <= k) / size) for k in ranking.ks
        },
        num_products=len(size),
        num_catalogue_products=products,
    )


def shelf_ranks(queries, catalogue, similarity, same=None):
    """Ranks over products, each ranked by its best image.

    Products whose best image ties with that of the query's product do not count as better.

    Args:
      queries, catalogue: `Embedded`.
      same: `identity.Same` of both; computed if None.

    Returns:
      int [Q], the rank of the query's product from 1; 0 for unanswerable queries.
    """
    same = same or identity.same_images(queries, catalogue)
    products = np.concatenate([queries.products, catalogue.products])
    names, codes = np.unique(products, return_inverse=True)
    ql, cl = codes[: len(queries)], codes[len(queries) :]
    left, right = vectors.pair(queries.embeddings, catalogue.embeddings, similarity)
    bound = kernels.float32_bound(left, right) + 2 * exact.largest_error(left, right)
    ranks = np.zeros(len(queries), np.int64)
    step = max(1, min(1024, 2**26 // len(names)))
    scores_of = functools.partial(exact.in_parts, exact.scores, left, right)
    keys_of = functools.partial(exact.in_parts, exact.keys, left, right)
    relevant, items = relevant_pairs(ql, cl, same.pairs)
    score, error = scores_of(relevant, items)
    by, score, _, _, _ = exact.order(
        relevant, score, error, items, lambda at: keys_of(relevant[at], items[at])
    )
    at, first = np.unique(relevant[by], return_index=True)
    best, target = np.full(len(queries), -1), np.full(len(queries), np.inf)
    best[at], target[at] = items[by[first]], score[first]
    margin = exact.largest_error(left, right)
    for part in tracked(len(queries), step, "ranks of products, queries"):
        rows = left.left(part)
        low, high = (
            (target[part] + left.offset + sign * bound[part]).astype(np.float32) for sign in (-1, 1)
        )
        before = np.zeros((len(rows), len(names)), bool)
        for j, block in right.blocks():
            scores = rows @ block.T
            row, column = where(scores >= low[:, None])
            query, item = part.start + row, j + column
            other = (cl[item] != ql[query]) & ~same.among(item[:, None], query)[:, 0]
            row, column, query, item = (each[other] for each in (row, column, query, item))
            ahead = scores[row, column] > high[row]
            near = np.flatnonzero(~ahead)
            score, error = scores_of(query[near], item[near])
            gap = score - target[query[near]]
            ahead[near] = gap > error + margin[query[near]]
            close = near[np.abs(gap) <= error + margin[query[near]]]
            theirs = keys_of(query[close], item[close])
            own = keys_of(query[close], best[query[close]])
            ahead[close] = (theirs[0] > own[0]) | ((theirs[0] == own[0]) & (theirs[1] > own[1]))
            before[row[ahead], cl[item[ahead]]] = True
        ranks[part] = np.where(best[part] >= 0, before.sum(1) + 1, 0)
    return ranks
