"""What a report shows of an evaluation: the queries and items worth a look."""

import numpy as np

from retrieval.ranking.vectors import pair_similarity

EACH = 12  # entries of every part
SHOWN = 5  # results beside a query


def choose(queries, catalogue, result, seed=0) -> dict:
    """Lists of query rows (of catalogue rows for the hubs), and what those queries should find.

    worst: first relevant item farthest down; one query a product, as its others fail alike. near:
    the right item just missed the top; one a product. hits: a random choice of those that are
    right. hubs: [(catalogue row, times it was wrongly among the first ten)]. suspects: [(query row,
    product)], see `_suspects`. answers: {query row: (catalogue row, similarity)} of the best
    relevant item where it is not among the results shown.
    """
    ranking, rows = result.ranking, result.rows
    first = ranking.first
    random = np.random.default_rng(seed)
    right = (catalogue.products[rows] == queries.products[:, None]) & (rows >= 0)
    missed = np.flatnonzero(first > 1)
    worst = missed[np.argsort(-first[missed], kind="stable")]
    near = np.flatnonzero((first > 1) & (first <= 5))
    gap = result.scores[near, 0] - result.scores[near, np.minimum(first[near], rows.shape[1]) - 1]
    near = near[np.argsort(gap, kind="stable")]
    hits = np.flatnonzero(first == 1)
    wrong = rows[:, :10][(rows[:, :10] >= 0) & ~right[:, :10]]
    count = np.bincount(wrong, minlength=len(catalogue))
    hubs = np.argsort(-count, kind="stable")[:EACH]
    suspects = _suspects(queries, catalogue, result, right)
    chosen = {
        "worst": _one_each(worst, queries.products)[:EACH],
        "near": _one_each(near, queries.products)[:EACH],
        "hits": np.sort(random.permutation(hits)[:EACH]).tolist(),
        "hubs": [(int(r), int(count[r])) for r in hubs if count[r] > 0],
        "suspects": [(int(q), str(catalogue.products[rows[q, 0]])) for q in suspects],
    }
    shown = {*chosen["worst"], *chosen["near"], *(q for q, _ in chosen["suspects"][:EACH])}
    shown = [q for q in sorted(shown) if first[q] > SHOWN]
    chosen["answers"] = _answers(queries, catalogue, shown, result)
    return chosen


def _one_each(rows, products):
    """The first row of every product, in the order given."""
    return rows[np.sort(np.unique(products[rows], return_index=True)[1])].tolist()


def _suspects(queries, catalogue, result, right):
    """Queries, the surest first, whose label looks wrong: their own product is not among the first
    five, which instead show all pictures (up to five) of one other product, the first of them as
    near as right results usually are."""
    ranking, rows, best = result.ranking, result.rows, result.scores[:, 0]
    _, codes, count = np.unique(catalogue.products, return_inverse=True, return_counts=True)
    five = codes[rows[:, :5]]
    pictures = np.minimum(count[five[:, 0]], five.shape[1])
    same = (five == five[:, :1]).sum(1) >= pictures
    usual = np.median(best[right[:, 0]]) if right[:, 0].any() else np.inf
    found = np.flatnonzero(same & (ranking.first > 5) & (best >= usual) & (rows[:, 0] >= 0))
    return found[np.argsort(-best[found], kind="stable")]


def _answers(queries, catalogue, shown, result):
    similarity, answers = result.figures["similarity"], {}
    for q in shown:
        items = np.flatnonzero(catalogue.products == queries.products[q])
        items = items[~result.same.among(items[None], [q])[0]]
        near = pair_similarity(
            queries.embeddings[[q] * len(items)], catalogue.embeddings[items], similarity
        )
        best = near.argmin() if similarity == "euclidean" else near.argmax()
        answers[q] = (int(items[best]), float(near[best]))
    return answers


def wanted(chosen, results, others=()) -> dict:
    """Rows of {'queries', 'catalogue'} whose pictures are needed."""
    result = next(iter(results.values()))
    rows = {*chosen["worst"], *chosen["near"], *chosen["hits"]}
    rows |= {q for q, _ in chosen["suspects"][:EACH]}
    items = {r for r, _ in (*chosen["hubs"], *chosen["answers"].values())}
    items |= set(result.rows[sorted(rows), :SHOWN].ravel().tolist())
    for each in results.values():
        items |= set(each.rows[list(others), :SHOWN].ravel().tolist())
    return {"queries": rows | set(others), "catalogue": items - {-1}}
