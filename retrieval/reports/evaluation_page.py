"""The report: one HTML file with the figures of an evaluation and the pictures behind them."""

import numpy as np

from retrieval.evaluation.figures import FEW
from retrieval.reports import charts, page
from retrieval.reports.page import name, text
from retrieval.reports.selection import EACH, SHOWN

CATEGORIES = 40  # the weakest are listed, the others stand in the CSV
BASELINES = {"raw_pixels": "Raw pixels", "color_histogram": "Colour histogram"}
RERANKING = {
    "aqe": "Query expansion (aqe)",
    "dba": "Catalogue averaging (dba)",
    "k_reciprocal": "k-reciprocal",
}
GLOSSARY = {
    "recall@k": "share of queries with a right item among the first k results.",
    "precision@k": "share of right items among the first k results.",
    "MAP@R": "with R right items in the catalogue: the precision at each of them that is among the "
    "first R results, summed and divided by R (Musgrave et al., 2020).",
    "R-precision": "share of right items among the first R results.",
    "MRR": "mean of 1 / the rank of the first right item.",
    "mean, median rank": "of the first right item.",
    "95% interval": "from a bootstrap over products: what the figure would be with other products "
    "of the same kind. Queries of one product stand or fall together.",
}


def write(path, *, figures, curves, histogram, chosen, queries, catalogue, result, images):
    """Writes the report; arguments as `retrieval.reports.outputs.write` gathers them."""
    show = _Gallery(queries, catalogue, result, chosen["answers"], *images)
    after = "Under each result: its " + (
        "distance from the query."
        if figures["similarity"] == "euclidean"
        else f"similarity to the query ({figures['similarity']})."
    )
    k = min(10, result.rows.shape[1])
    chance = len(queries) * k / len(catalogue)
    suspects = [q for q, _ in chosen["suspects"]]
    sections = [
        ("Summary", _summary(figures)),
        ("Recall at k", charts.recall(curves, _recall_intervals(figures))),
        ("Similarity", charts.histogram(histogram)),
        ("Categories", _categories(figures)),
        ("Approximate index", _index(figures)),
        ("Re-ranking", _reranking(figures)),
        ("Confusion", _confusion(queries, catalogue, result)),
        ("Confusion of categories", _category_confusion(queries, catalogue, result)),
        (
            "Worst misses",
            show.queries(
                f"The right item stands farthest down; one query a product. {after} In the dashed "
                "frame: the right item.",
                chosen["worst"],
            ),
        ),
        (
            "Near misses",
            show.queries(
                "The right item is among the first five, hardly farther away than the first; one "
                f"query a product. {after}",
                chosen["near"],
            ),
        ),
        ("Random hits", show.queries(f"The first item is right. {after}", chosen["hits"])),
        (
            "Hubs",
            show.hubs(
                f"Catalogue items that were most often wrongly among the first {k} of the "
                f"{len(queries)} queries. Results drawn by lot would show each item about "
                f"{chance:.0f} times.",
                chosen["hubs"],
            ),
        ),
        (
            "Suspected wrong labels",
            show.queries(
                f"{len(suspects)} queries look like another product: as near to it as right "
                "results usually are, with their own product not among the first five. The file "
                f"…-suspected_labels.csv beside this report lists them to be corrected. {after}",
                suspects[:EACH],
            ),
        ),
    ]
    page.write(path, "Retrieval report", _head(figures), sections)


def _head(figures):
    if "model" in figures:
        what = f"{text(figures['model'])}, step {figures['step']}: {text(figures['checkpoint'])}"
    else:
        sets = [figures["queries"], figures["catalogue"]]
        what = " against ".join(text(each) for each in sets if each)
    return f"<p class=sub>{what}</p>"


def _summary(figures):
    interval, ks = figures["interval95"], list(figures["recall@k"])
    cards = "".join(
        f"<div class=card><b>{title}</b><span class=big>{value:.3f}</span>"
        f"<small>{_range(interval[key])}</small></div>"
        for title, key, value in (
            *((f"recall@{k}", f"recall@{k}", figures["recall@k"][k]) for k in ks),
            ("MAP@R", "map@r", figures["map@r"]),
            ("MRR", "mrr", figures["mrr"]),
        )
    )
    terms = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in GLOSSARY.items())
    return (
        f"<div class=cards>{cards}</div><p class=dim>Small: the 95% interval.</p>"
        f"<ul>{''.join(f'<li>{fact}</li>' for fact in _facts(figures))}</ul>"
        f"{_all_figures(figures)}"
        f"<details><summary>What the figures mean</summary><dl>{terms}</dl></details>"
    )


def _facts(figures):
    """Sentences, HTML, on what was counted and how."""
    tied, shelf = figures["ties"], figures["product_level"]
    first = next(iter(figures["recall@k"]))
    products = shelf["num_catalogue_products"]
    yield (
        f"{figures['num_queries']:,} queries against {figures['num_catalogue']:,} catalogue items "
        f"({products:,} product{'s' * (products != 1)})."
    )
    if figures["num_unanswerable"]:
        yield (
            f"{figures['num_unanswerable']:,} queries have no right item in the catalogue and are "
            "left out of every rate."
        )
    else:
        yield "Every query has a right item in the catalogue."
    if figures["num_self_excluded"]:
        yield (
            f"{figures['num_self_excluded']:,} queries are in the catalogue themselves, which the "
            "ids tell, and were left out of their own results."
        )
    yield (
        f"The ranks are exact; queries too close to call for {text(figures['filter'])}, and "
        f"decided in float64: {figures['num_decided_in_float64']:,}."
    )
    if tied["num_queries_with_ties"]:
        yield (
            f"{tied['num_queries_with_ties']:,} queries have equal scores that matter: "
            f"recall@{first} is {tied['worst'][first]:.3f} if they are ordered against the query, "
            f"{tied['expected'][first]:.3f} at random, {tied['best'][first]:.3f} for it."
        )
    yield (
        f"Counting each product once on the shelf, recall@{first} is "
        f"{shelf['recall@k'][first]:.3f}; averaged over the {shelf['num_products']:,} products "
        f"of the queries instead of over queries, {shelf['macro_recall@k'][first]:.3f}."
    )
    if shelf["num_products"] < FEW:
        yield f"Fewer than {FEW} products: the intervals say next to nothing."


def _all_figures(figures):
    """Every rate of the embedding beside those of the baselines."""
    sets = [figures, *(figures[key] for key in BASELINES if key in figures)]
    header = ["", "This embedding", "95% interval"]
    header += [title for key, title in BASELINES.items() if key in figures]
    interval, rows = figures["interval95"], []

    def add(title, values, form, key=None):
        mine, *others = (f"{value:{form}}" for value in values)
        shown = f"<span class=dim>{_range(interval[key])}</span>" if key in interval else ""
        rows.append([title, mine, shown, *others])

    for rate in ("recall@k", "precision@k"):
        for k in figures[rate]:
            title = rate.replace("@k", f"@{k}")
            add(title, [f[rate][k] for f in sets], ".3f", title)
    for title, key in (("MAP@R", "map@r"), ("R-precision", "r_precision"), ("MRR", "mrr")):
        add(title, [f[key] for f in sets], ".3f", key)
    for title, key in (("mean rank", "mean_rank"), ("median rank", "median_rank")):
        add(title, [f[key] for f in sets], ",.1f")
    return page.table(header, rows)


def _range(interval):
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _recall_intervals(figures):
    return {k: figures["interval95"][f"recall@{k}"] for k in figures["recall@k"]}


def _against(figures, columns):
    """Rows of recall@k: the exact figure, then what each of `columns` has, with the difference."""
    return [
        [f"recall@{k}", f"{exact:.3f}", *(_change(each["recall@k"][k], exact) for each in columns)]
        for k, exact in figures["recall@k"].items()
    ]


def _change(rate, before):
    return f"{rate:.3f} <small>{rate - before:+.3f}</small>"


def _index(figures):
    """What the approximate index loses, beside exact search, with its speed and size."""
    if "index" not in figures:
        return ""
    found = figures["index"]
    tuned, size = found["tuned"], figures["num_catalogue"] / 2**20
    effort = f" (search effort, nprobe or efSearch: {tuned['effort']:g})" if tuned["effort"] else ""
    rows = _against(figures, [found])
    for title, key, factor in (
        ("ms a query", "ms_per_query", 1),
        ("bytes a vector", "bytes_per_vector", 1),
        ("MiB in all", "bytes_per_vector", size),
    ):
        rows.append([title, *(f"{factor * found[f'{kind}{key}']:,.3g}" for kind in ("exact_", ""))])
    return (
        f"<p>{text(found['factory'])}, tuned to find {100 * tuned['asked']:g}% of the nearest "
        f"items, finds {100 * found['agreement']:.1f}% of the {found['depth']} nearest that exact "
        f"search finds for these queries{effort}. Small: what recall loses or gains by it. Times "
        "are those of all queries searched at once, divided by their number.</p>"
        + page.table(["", "Exact search", text(found["factory"])], rows)
    )


def _reranking(figures):
    """What re-ranking gains, and at what cost."""
    if "rerank" not in figures:
        return ""
    methods = figures["rerank"]
    found = list(methods.values())
    rows = _against(figures, found)
    rate = figures["map@r"]
    shown = [_change(f["map@r"], rate) if "map@r" in f else "" for f in found]
    rows.append(["MAP@R", f"{rate:.3f}", *shown])
    rows.append(["seconds for all queries", "", *(f"{f['seconds']:.3g}" for f in found)])
    cost = [f["seconds_per_point"] for f in found]
    cost = [f"{c:.3g}" if np.isfinite(c) else "<span class=dim>no gain</span>" for c in cost]
    first = next(iter(figures["recall@k"]))
    rows.append([f"seconds a point gained of recall@{first}", "", *cost])
    return (
        "<p>Small: what is gained or lost against the plain order. A point is 0.01. k-reciprocal "
        "orders the first hundred results only, so that it has no MAP@R.</p>"
        + page.table(["", "Without", *(RERANKING[method] for method in methods)], rows)
    )


def _categories(figures):
    k = next(iter(figures["recall@k"]))
    rated = sorted(figures["per_category"].items(), key=lambda item: item[1]["recall@k"][k])
    rated = [item for item in rated if np.isfinite(item[1]["recall@k"][k])]
    if not rated:
        return ""
    rows = []
    for category, found in rated[:CATEGORIES]:
        rate, interval = found["recall@k"][k], found.get(f"recall@{k}_interval95")
        whisker, shown = "", "too few products"
        if interval:
            low, high = (100 * value for value in interval)
            whisker = f'<b style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></b>'
            shown = _range(interval)
        rows.append(
            [
                name(category) if category else "<em>none</em>",
                f"{found['num_queries']:,}",
                f'<div class=bar><i style="width:{100 * rate:.1f}%"></i>{whisker}</div>'
                f"{rate:.3f} <small>{shown}</small>",
            ]
        )
    note = "The weakest first; the thin stroke is the 95% interval."
    if len(rated) > CATEGORIES:
        note += f" {len(rated) - CATEGORIES} more categories stand in …-figures.csv."
    return f"<p>{note}</p>" + page.table(["Category", "Queries", f"recall@{k}"], rows, "bars")


def _confusion(queries, catalogue, result, shown=15):
    """Which products are mistaken for which, most often first."""
    best, answerable = result.rows[:, 0], result.ranking.answerable
    wrong = (best >= 0) & answerable & (result.ranking.first > 1)
    wrong &= catalogue.products[best] != queries.products
    pairs = np.stack([queries.products[wrong], catalogue.products[best[wrong]]], 1)
    if not len(pairs):
        return ""
    names, count = np.unique(pairs, axis=0, return_counts=True)
    rows = []
    for i in np.argsort(-count, kind="stable")[:shown]:
        a, b = names[i]
        of = (answerable & (queries.products == a)).sum()
        rows.append([name(a), name(b), f"{count[i]:,} of {of:,}"])
    return "<p>Products whose queries most often find another product first.</p>" + page.table(
        ["Product", "Mistaken for", "Queries"], rows, "names"
    )


def category_confusion(queries, catalogue, result, shown=12):
    """(names [C], counts [C, C]): queries of a category (row) whose first result is of another
    (column). The most frequent `shown` categories; all others are one, named '…'."""
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


def _category_confusion(queries, catalogue, result):
    if not (queries.categories != "").any() or not (catalogue.categories != "").any():
        return ""
    names, counts = category_confusion(queries, catalogue, result)
    shown = [name(each) if each else "<em>none</em>" for each in names]
    rows = []
    for title, line in zip(shown, counts, strict=True):
        total = max(1, line.sum())
        cells = [f'<i style="--share:{100 * n / total:.0f}%">{n or ""}</i>' for n in line]
        rows.append([title, *cells])
    return (
        "<p>Queries by their own category (rows) and that of their first result (columns).</p>"
        + page.table(["", *(f"<span class=up>{each}</span>" for each in shown)], rows, "matrix")
    )


class _Gallery:
    """Rows of pictures: a query with its first results, or items alone."""

    def __init__(self, queries, catalogue, result, answers, query_images, item_images):
        self.asked, self.catalogue, self.result, self.answers = queries, catalogue, result, answers
        self.query_images, self.item_images = query_images, item_images
        # A distance is kept as a negative score, so that more is nearer.
        self.sign = -1 if result.figures["similarity"] == "euclidean" else 1

    def queries(self, note, rows):
        return f"<p>{note}</p>{''.join(map(self._query, rows))}" if rows else ""

    def hubs(self, note, hubs):
        items = [self._item(r, "wrong", f"{n:,} times") for r, n in hubs]
        return f"<p>{note}</p>{page.row(items)}" if hubs else ""

    def _query(self, q):
        rank, product = int(self.result.ranking.first[q]), self.asked.products[q]
        note = f"query; right item at rank {rank}" if rank else "query"
        cells = [page.picture(self.query_images, self.asked.ids[q], product, "query", note)]
        for r, score in zip(self.result.rows[q, :SHOWN], self.result.scores[q], strict=False):
            if r >= 0:
                right = "right" if self.catalogue.products[r] == product else "wrong"
                cells.append(self._item(r, right, f"{self.sign * score:.3f}"))
        if q in self.answers:
            r, score = self.answers[q]
            cells.append(self._item(r, "missed", f"right, rank {rank}: {score:.3f}"))
        return page.row(cells)

    def _item(self, r, kind, note):
        catalogue = self.catalogue
        return page.picture(self.item_images, catalogue.ids[r], catalogue.products[r], kind, note)
