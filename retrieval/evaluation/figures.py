"""Everything that is reported of one embedding: rates with intervals, by category, by product."""

import dataclasses

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval import metrics
from retrieval.evaluation.intervals import bootstrap, intervals
from retrieval.evaluation.lists import in_order, nearest, parts_of, tracked, without_self
from retrieval.ranking import counting, kernels, vectors
from retrieval.ranking.vectors import pair_similarity

REPLICATES = 1000
FEW = 5  # products below which an interval would say nothing
SAMPLES = 100_000  # pairs drawn for the similarity histogram
AT_ONCE = 8192  # queries searched between two reports of progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """figures: what eval.json holds. ranking: `metrics.Ranking`. scores, rows [Q, top]: what was
    retrieved, best first, the query itself left out; rows are -1 where the catalogue ends."""

    figures: dict
    ranking: metrics.Ranking
    scores: np.ndarray
    rows: np.ndarray


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
    ranking = metrics.rank_queries(
        queries.embeddings,
        queries.products,
        None if own_set else catalogue.embeddings,
        None if own_set else catalogue.products,
        query_ids=queries.ids,
        catalogue_ids=None if own_set else catalogue.ids,
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
    figures["similarity"] = similarity
    figures["interval95"] = intervals(ranking, queries.products)
    figures["ties"] = ties(ranking)
    figures["per_category"] = by_category(ranking, queries)
    with threadpool_limits(threads, "blas"):
        figures["product_level"] = product_level(queries, catalogue, ranking, similarity)
    # More than asked for: the query itself may be among them, and of items that tie at the end of
    # a list FAISS keeps any.
    near = min(2 * top + 1, len(catalogue))
    found = nearest(queries.embeddings, catalogue.embeddings, near, similarity)
    found = in_order(*found, queries, catalogue, similarity, min(top + 1, near))
    scores, rows = without_self(*found, queries.ids, catalogue.ids, top)
    return Evaluation(figures, ranking, scores, rows)


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


def product_level(queries, catalogue, ranking, similarity):
    """Figures for a shelf of products instead of pictures.

    recall@k: a product stands where its best picture does, so that a product takes one place
    however many pictures it has. macro_recall@k: every query product counts once, however many
    queries show it.
    """
    ok = ranking.answerable
    first = ranking.first
    if len(np.unique(catalogue.products)) < len(catalogue):
        first = shelf_ranks(queries, catalogue, similarity)
    codes = np.unique(queries.products[ok], return_inverse=True)[1]
    size = np.maximum(np.bincount(codes), 1)
    macro = {k: metrics.mean(np.bincount(codes, ranking.first[ok] <= k) / size) for k in ranking.ks}
    return {
        "recall@k": {k: metrics.mean(first[ok] <= k) for k in ranking.ks},
        "macro_recall@k": macro,
        "num_products": len(size),
        "num_catalogue_products": len(np.unique(catalogue.products)),
    }


def shelf_ranks(queries, catalogue, similarity):
    """Rank [Q] of the query's product among products, each where its best picture stands.

    Products whose best picture scores as the query's own do not stand before it. Scores that
    float32 cannot tell apart are decided in float64. 0 for unanswerable queries.
    """
    products = np.concatenate([queries.products, catalogue.products])
    names, codes = np.unique(products, return_inverse=True)
    ql, cl = codes[: len(queries)], codes[len(queries) :]
    left, right = vectors.pair(queries.embeddings, catalogue.embeddings, similarity)
    bound = kernels.float32_bound(left, right)
    own = metrics.own_rows(queries.ids, catalogue.ids)
    ranks = np.zeros(len(queries), np.int64)
    step = max(1, min(1024, 2**26 // len(names)))
    for part in tracked(len(queries), step, "ranks of products, queries"):
        rows = left.left(part)
        query, item = counting.relevant_pairs(ql[part], cl, own[part])
        target = np.full(len(rows), -np.inf)
        for at in parts_of(len(query), left.dimensions):
            score = vectors.pair_scores(rows[query[at]], right.right(item[at]))
            np.maximum.at(target, query[at], score)
        answerable = np.isfinite(target)
        low = np.where(answerable, target - bound[part], np.inf).astype(np.float32)
        high = (target + bound[part]).astype(np.float32)
        before = np.zeros((len(rows), len(names)), bool)
        for j, items in right.blocks():
            scores = rows @ items.T
            row, column = counting.where(scores >= low[:, None])
            other = (cl[j + column] != ql[part][row]) & (j + column != own[part][row])
            row, column = row[other], column[other]
            stands = scores[row, column] > high[row]
            near = np.flatnonzero(~stands)
            for at in parts_of(len(near), left.dimensions):
                r, c = row[near[at]], column[near[at]]
                stands[near[at]] = vectors.pair_scores(rows[r], items[c]) > target[r]
            before[row[stands], cl[j + column[stands]]] = True
        ranks[part] = np.where(answerable, before.sum(1) + 1, 0)
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
    own = metrics.own_rows(queries.ids, catalogue.ids)
    some = random.permutation(len(queries))[:SAMPLES]
    at, items = counting.relevant_pairs(ql[some], cl, own[some])
    keep = random.permutation(len(at))[:SAMPLES]
    same = some[at[keep]], items[keep]
    q, c = random.integers(0, len(queries), SAMPLES), random.integers(0, len(catalogue), SAMPLES)
    differ = ql[q] != cl[c]
    values = [
        pair_similarity(queries.embeddings[a], catalogue.embeddings[b], similarity)
        for a, b in (same, (q[differ], c[differ]))
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
