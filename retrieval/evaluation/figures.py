"""Everything that is reported of one embedding: rates with intervals, by category, by product."""

import dataclasses
import functools

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval import metrics
from retrieval.evaluation import identity
from retrieval.evaluation.intervals import bootstrap, intervals
from retrieval.evaluation.lists import in_order, nearest, tracked, without
from retrieval.ranking import counting, exact, kernels, vectors
from retrieval.ranking.vectors import pair_similarity

REPLICATES = 1000
FEW = 5  # products below which an interval would say nothing
SAMPLES = 100_000  # pairs drawn for the similarity histogram
AT_ONCE = 8192  # queries searched between two reports of progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """figures: what eval.json holds. ranking: `metrics.Ranking`. scores, rows [Q, top]: what was
    retrieved, best first, without the query itself; rows are -1 after the last item. same: which
    items are the queries themselves."""

    figures: dict
    ranking: metrics.Ranking
    scores: np.ndarray
    rows: np.ndarray
    same: identity.Same


def evaluate(
    queries, catalogue=None, *, similarity="cosine", ks=metrics.KS, top=20, threads=None,
    filter="auto",
):  # fmt: skip
    """Evaluates queries against a catalogue (None: against themselves), both `Embedded`.

    filter: as in `metrics.rank_queries`. Returns an `Evaluation`. Raises ValueError where the sets
    do not fit together or hold NaN, or where no query has a relevant item.
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
                "no query has a relevant catalogue item: no two queries are of one product, so "
                "they have nothing to find among themselves; name a catalogue"
            )
        raise ValueError(
            "no query has a relevant catalogue item: do both sets spell their products alike? "
            f"The first query's is {str(queries.products[0])!r}, the first item's "
            f"{str(catalogue.products[0])!r}"
        )
    figures = metrics.summarize(ranking)
    figures["num_catalogue"] = len(catalogue)
    figures["num_self_excluded"] = int((ranking.candidates < len(catalogue)).sum())
    figures["excluded_by"] = same.excluded_by
    figures["num_byte_equal_copies"] = same.num_byte_equal_copies
    figures["similarity"] = similarity
    figures["interval95"] = intervals(ranking, queries.products)
    figures["ties"] = ties(ranking)
    figures["per_category"] = by_category(ranking, queries)
    with threadpool_limits(threads, "blas"):
        figures["product_level"] = product_level(queries, catalogue, ranking, similarity, same)
    # More than asked for: the query itself may be among them, and of items that tie at the end of
    # a list FAISS keeps any.
    near = min(2 * top + same.most, len(catalogue))
    found = nearest(queries.embeddings, catalogue.embeddings, near, similarity)
    found = in_order(*found, queries, catalogue, similarity, min(top + same.most, near))
    scores, rows = without(*found, same.among(found[1]), top)
    return Evaluation(figures, ranking, scores, rows, same)


def ties(ranking):
    """Recall@k had ties been broken for the query, against it, and in random order."""
    ok = ranking.answerable
    best, worst = ranking.best[ok], ranking.worst[ok]
    others, relevant = ranking.tied[ok], ranking.tied_relevant[ok]
    result = {
        "num_queries_with_ties": int((others > 0).sum()),
        "best": {},
        "worst": {},
        "expected": {},
    }
    for k in ranking.ks:
        result["best"][k] = metrics.mean(best <= k)
        result["worst"][k] = metrics.mean(worst <= k)
        # Of the tied items, `slots` are among the k best; none of them relevant with probability
        # C(others, slots) / C(others + relevant, slots).
        slots = np.clip(k - best + 1, 0, others + 1)
        missed = np.ones(len(slots))
        for i in range(slots.max(initial=0)):
            factor = np.maximum(others - i, 0) / np.maximum(others + relevant - i, 1)
            missed *= np.where(i < slots, factor, 1)
        result["expected"][k] = metrics.mean(1 - missed)
    return result


def by_category(ranking, queries):
    """{category: figures} for the queries of each category, where any has one."""
    ok = ranking.answerable
    categories = queries.categories
    result = {}
    for name in np.unique(categories):
        mask = categories == name
        if name == "" and mask.all():
            return {}
        first = ranking.first[mask & ok]
        result[str(name)] = {
            "num_queries": int(mask.sum()),
            "num_unanswerable": int((mask & ~ok).sum()),
            "recall@k": {k: metrics.mean(first <= k) for k in ranking.ks},
            "map@r": metrics.mean(ranking.average_precision[mask & ok]),
        }
        if len(np.unique(queries.products[mask & ok])) >= FEW:
            values = (first <= ranking.ks[0]).astype(float)[:, None]
            rates = bootstrap(values, queries.products[mask & ok])
            low, high = np.percentile(rates, [2.5, 97.5])
            result[str(name)][f"recall@{ranking.ks[0]}_interval95"] = [float(low), float(high)]
    return result


def product_level(queries, catalogue, ranking, similarity, same):
    """Figures for a shelf of products instead of pictures.

    recall@k: a product stands where its best picture does, so that a product takes one place
    however many pictures it has. macro_recall@k: every query product counts once, however many
    queries show it.
    """
    ok = ranking.answerable
    first = ranking.first
    if len(np.unique(catalogue.products)) < len(catalogue):
        first = shelf_ranks(queries, catalogue, similarity, same)
    codes = np.unique(queries.products[ok], return_inverse=True)[1]
    size = np.maximum(np.bincount(codes), 1)
    macro = {k: metrics.mean(np.bincount(codes, ranking.first[ok] <= k) / size) for k in ranking.ks}
    return {
        "recall@k": {k: metrics.mean(first[ok] <= k) for k in ranking.ks},
        "macro_recall@k": macro,
        "num_products": len(size),
        "num_catalogue_products": len(np.unique(catalogue.products)),
    }


def shelf_ranks(queries, catalogue, similarity, same=None):
    """Ranks over products, each ranked by its best image.

    Products whose best image ties with the query's own are not ahead of it.

    Args:
      queries, catalogue: `Embedded`.
      same: `identity.Same` of both; found here if None.

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
    relevant, items = counting.relevant_pairs(ql, cl, same.pairs)
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
            row, column = counting.where(scores >= low[:, None])
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


def similarity_histogram(queries, catalogue, similarity, bins=60, seed=0):
    """How alike pictures of one product, and of different products, are.

    Counts over at most 100,000 pairs of each kind, drawn at random: {'edges' [bins + 1],
    'same_product' [bins], 'different_product' [bins], 'unit'}. The unit is the similarity itself,
    for euclidean the distance.
    """
    random = np.random.default_rng(seed)
    codes = np.unique(np.concatenate([queries.products, catalogue.products]), return_inverse=True)[
        1
    ]
    ql, cl = codes[: len(queries)], codes[len(queries) :]
    same = identity.same_images(queries, catalogue)
    some = np.sort(random.permutation(len(queries))[:SAMPLES])
    place = np.searchsorted(some, same.query).clip(max=len(some) - 1)
    kept = some[place] == same.query
    at, items = counting.relevant_pairs(ql[some], cl, (place[kept], same.item[kept]))
    keep = random.permutation(len(at))[:SAMPLES]
    alike = some[at[keep]], items[keep]
    q, c = random.integers(0, len(queries), SAMPLES), random.integers(0, len(catalogue), SAMPLES)
    differ = ql[q] != cl[c]
    values = [
        pair_similarity(queries.embeddings[a], catalogue.embeddings[b], similarity)
        for a, b in (alike, (q[differ], c[differ]))
    ]
    everything = np.concatenate(values)
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):  # collapsed: bins would have no width
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(v, edges)[0].tolist() for v in values]
    unit = "distance" if similarity == "euclidean" else similarity
    return {
        "unit": unit,
        "edges": edges.tolist(),
        "same_product": counts[0],
        "different_product": counts[1],
    }
