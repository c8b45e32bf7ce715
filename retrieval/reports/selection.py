"""Chooses the queries and items that a report shows."""

import dataclasses

import numpy as np

from retrieval.ranking.vectors import pair_similarity

EACH = 12  # maximum rows per section
SHOWN = 5  # results beside a query
HUB_DEPTH = 10  # results per query that count for a hub
LISTED = 400  # queries to explore
MOST_IMAGES = 800  # on a page: about 4 MB


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Rows of queries (for `hubs`, of the catalogue) to show.

    Attributes:
      worst: the first relevant item has the lowest rank; one query per product, since queries of
        the same product fail in the same way.
      near: the first relevant item just missed the top; one query per product.
      hits: a random choice of queries whose first result is relevant.
      hubs: [(catalogue row, times it was wrongly among the first `HUB_DEPTH`)].
      suspects: [(query row, product it looks like)], most certain first, see `_suspects`.
      listed: queries to explore: all above and a random choice of the others, in order.
      answers: {query row: (catalogue row, similarity)} of the best relevant item, for queries that
        do not show it among their results.
    """

    worst: list[int]
    near: list[int]
    hits: list[int]
    hubs: list[tuple[int, int]]
    suspects: list[tuple[int, str]]
    listed: list[int]
    answers: dict[int, tuple[int, float]]

    def wanted(self, results, others=()):
        """Rows of queries and of catalogue items whose images are needed, as two sets.

        Args:
          results: the evaluations whose results are shown.
          others: further query rows.
        """
        queries = {*self.listed, *self.shown()}
        items = {row for row, _ in (*self.hubs, *self.answers.values())}
        items |= set(results[0].rows[sorted(queries), :SHOWN].ravel().tolist())
        for each in results:
            items |= set(each.rows[list(others), :SHOWN].ravel().tolist())
        return queries | set(others), items - {-1}

    def shown(self):
        """Rows of the queries in the sections."""
        return {*self.worst, *self.near, *self.hits, *(q for q, _ in self.suspects[:EACH])}


def choose(queries, catalogue, result, seed=0) -> Chosen:
    """Chooses what to show of an evaluation: all suspects, at most `EACH` of other kinds."""
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
    top = rows[:, :HUB_DEPTH]
    count = np.bincount(top[(top >= 0) & ~right[:, :HUB_DEPTH]], minlength=len(catalogue))
    hubs = np.argsort(-count, kind="stable")[:EACH]
    suspects = _suspects(queries, catalogue, result, right)
    worst, near = (_one_each(each, queries.products)[:EACH] for each in (worst, near))
    hits = np.sort(random.permutation(hits)[:EACH]).tolist()
    chosen = [*worst, *near, *hits, *suspects[:EACH].tolist()]
    listed = _listed(np.array([*chosen, *random.permutation(len(queries))], int), result)
    shown = [q for q in sorted({*chosen, *listed}) if first[q] > SHOWN]
    return Chosen(
        worst=worst,
        near=near,
        hits=hits,
        hubs=[(int(row), int(count[row])) for row in hubs if count[row] > 0],
        suspects=[(int(q), str(catalogue.products[rows[q, 0]])) for q in suspects],
        listed=listed,
        answers=_answers(queries, catalogue, shown, result),
    )


def _listed(rows, result):
    """The first of the query `rows`, as many as `LISTED` and `MOST_IMAGES` allow, sorted."""
    listed, items = set(), set()
    for q in rows.tolist():
        more, count = items | set(result.rows[q, :SHOWN].tolist()), len(listed) + 1
        # For each query, also the relevant item that is not among the results.
        shown = count + min(count + len(more), result.figures.num_catalogue)
        if len(listed) == LISTED or shown > MOST_IMAGES:
            break
        listed.add(q)
        items = more
    return sorted(listed)


def _one_each(rows, products):
    """The first row of every product, in the order given."""
    return rows[np.sort(np.unique(products[rows], return_index=True)[1])].tolist()


def _suspects(queries, catalogue, result, right):
    """Queries whose label is probably wrong, most certain first.

    Their own product is not among the first five results. Instead, these are all images (up to
    five) of one other product, and the first is as near as relevant results usually are.
    """
    ranking, rows, best = result.ranking, result.rows, result.scores[:, 0]
    _, codes, count = np.unique(catalogue.products, return_inverse=True, return_counts=True)
    five = codes[rows[:, :5]]
    images = np.minimum(count[five[:, 0]], five.shape[1])
    same = (five == five[:, :1]).sum(1) >= images
    usual = np.median(best[right[:, 0]]) if right[:, 0].any() else np.inf
    found = np.flatnonzero(same & (ranking.first > 5) & (best >= usual) & (rows[:, 0] >= 0))
    return found[np.argsort(-best[found], kind="stable")]


def _answers(queries, catalogue, shown, result):
    similarity, answers = result.figures.similarity, {}
    for q in shown:
        items = np.flatnonzero(catalogue.products == queries.products[q])
        items = items[~result.same.among(items[None], [q])[0]]
        near = pair_similarity(
            queries.embeddings[[q] * len(items)], catalogue.embeddings[items], similarity
        )
        best = near.argmin() if similarity == "euclidean" else near.argmax()
        answers[q] = (int(items[best]), float(near[best]))
    return answers


def confusion(queries, catalogue, result, shown=15):
    """Pairs of products that are most often confused.

    Returns:
      [(product, product found first instead, such queries, answerable queries of the product)],
      the most frequent first.
    """
    best, answerable = result.rows[:, 0], result.ranking.answerable
    wrong = (best >= 0) & answerable & (result.ranking.first > 1)
    wrong &= catalogue.products[best] != queries.products
    pairs = np.stack([queries.products[wrong], catalogue.products[best[wrong]]], 1)
    names, count = np.unique(pairs, axis=0, return_counts=True)
    return [
        (*names[i], int(count[i]), int((answerable & (queries.products == names[i, 0])).sum()))
        for i in np.argsort(-count, kind="stable")[:shown]
    ]


def category_confusion(queries, catalogue, result, shown=12):
    """How often the first result is of another category.

    Returns:
      (names [C], counts [C, C]): queries by their own category (row) and the category of their
      first result (column). Contains the most frequent `shown` categories, and '…' for all others.
    """
    best = result.rows[:, 0]
    there = (best >= 0) & result.ranking.answerable
    pair = [queries.categories[there], catalogue.categories[best[there]]]
    names, count = np.unique(np.concatenate(pair), return_counts=True)
    kept = np.sort(names[np.argsort(-count, kind="stable")[:shown]])
    codes = [np.searchsorted(kept, part).clip(max=max(0, len(kept) - 1)) for part in pair]
    codes = [np.where(kept[c] == part, c, len(kept)) for c, part in zip(codes, pair, strict=True)]
    size = len(kept) + (len(names) > len(kept))
    counts = np.bincount(codes[0] * size + codes[1], minlength=size * size).reshape(size, size)
    return [*kept.tolist(), *["…"] * (size - len(kept))], counts
