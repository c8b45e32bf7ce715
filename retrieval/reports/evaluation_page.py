"""The report: one HTML file with the figures of an evaluation and the images behind them."""

import math
from typing import NamedTuple

from retrieval.evaluation.figures import FEW
from retrieval.evaluation.suite import BASELINES
from retrieval.reports import charts, page, selection
from retrieval.reports.page import Cell

MOST_CATEGORIES = 40  # the weakest are listed; figures.csv has the others
RERANKING = {
    "aqe": "Query expansion (aqe)",
    "dba": "Catalogue averaging (dba)",
    "k_reciprocal": "k-reciprocal",
}


class Rate(NamedTuple):
    """A row of the summary: a figure of the embedding and of each baseline.

    interval: (low, high) for the embedding, None for a figure without one. form: a format.
    """

    title: str
    values: list
    interval: tuple | None
    form: str


def write(path, *, result, curves, histogram, chosen, queries, catalogue, images):
    """Writes the report.

    Args:
      path: the HTML file.
      result: the `figures.Evaluation`, complete.
      curves: {title: recall over k, see `plots.recall_curve`}.
      histogram: what `figures.similarity_histogram` returns.
      chosen: what `selection.choose` returns.
      queries, catalogue: `Embedded`.
      images: ({id: image} of queries, {id: image} of catalogue items).
    """
    figures = result.figures
    show = _Gallery(queries, catalogue, result, chosen.answers, *images)
    baselines = {
        title.capitalize(): getattr(figures, name)
        for name, (title, _) in BASELINES.items()
        if getattr(figures, name)
    }
    k = min(figures.recall)
    rated = [each for each in figures.per_category.items() if math.isfinite(each[1].recall[k])]
    both = (queries.categories != "").any() and (catalogue.categories != "").any()
    confused = selection.category_confusion(queries, catalogue, result) if both else ((), ())
    page.write(
        path,
        "evaluation.html",
        title="Retrieval report",
        figures=figures,
        few=FEW,
        rates=list(_rates([figures, *baselines.values()])),
        baselines=list(baselines),
        curves=curves,
        recall_chart=charts.recall(
            curves, {k: figures.intervals[f"recall@{k}"] for k in figures.recall}
        ),
        histogram_chart=charts.histogram(histogram),
        rated=sorted(rated, key=lambda item: item[1].recall[k]),
        most_categories=MOST_CATEGORIES,
        method_titles=[RERANKING[method] for method in figures.rerank],
        confused=selection.confusion(queries, catalogue, result),
        confused_categories=list(
            zip(confused[0], (row.tolist() for row in confused[1]), strict=True)
        ),
        hub_depth=min(selection.HUB_DEPTH, result.rows.shape[1]),
        num_suspects=len(chosen.suspects),
        lines={
            "worst": [show.query(q) for q in chosen.worst],
            "near": [show.query(q) for q in chosen.near],
            "hits": [show.query(q) for q in chosen.hits],
            "hubs": [[show.item(r, "wrong", f"{n:,} times") for r, n in chosen.hubs]]
            if chosen.hubs
            else [],
            "suspects": [show.query(q) for q, _ in chosen.suspects[: selection.EACH]],
        },
    )


def _rates(sets):
    """The rows of the summary for these `Figures`, the embedding's first."""
    intervals = sets[0].intervals
    for name in ("recall", "precision"):
        for k in getattr(sets[0], name):
            title = f"{name}@{k}"
            yield Rate(title, [getattr(f, name)[k] for f in sets], intervals.get(title), ".3f")
    for title, name, key, form in (
        ("MAP@R", "map_at_r", "map@r", ".3f"),
        ("R-precision", "r_precision", None, ".3f"),
        ("MRR", "mrr", "mrr", ".3f"),
        ("mean rank", "mean_rank", None, ",.1f"),
        ("median rank", "median_rank", None, ",.1f"),
    ):
        yield Rate(title, [getattr(f, name) for f in sets], intervals.get(key), form)


class _Gallery:
    """Rows of images: a query with its first results, or items alone."""

    def __init__(self, queries, catalogue, result, answers, query_images, item_images):
        self.queries, self.catalogue, self.result, self.answers = (
            queries,
            catalogue,
            result,
            answers,
        )
        self.query_images, self.item_images = query_images, item_images
        # A distance is kept as a negative score, so that more is nearer.
        self.sign = -1 if result.figures.similarity == "euclidean" else 1

    def query(self, q):
        rank, product = int(self.result.ranking.first[q]), str(self.queries.products[q])
        note = f"query; relevant item at rank {rank}" if rank else "query"
        cells = [Cell(self.query_images, str(self.queries.ids[q]), product, "query", note)]
        shown = zip(self.result.rows[q, : selection.SHOWN], self.result.scores[q], strict=False)
        for r, score in shown:
            if r >= 0:
                kind = "right" if self.catalogue.products[r] == product else "wrong"
                cells.append(self.item(r, kind, f"{self.sign * score:.3f}"))
        if q in self.answers:
            r, score = self.answers[q]
            cells.append(self.item(r, "missed", f"relevant, rank {rank}: {score:.3f}"))
        return cells

    def item(self, r, kind, note):
        names = str(self.catalogue.ids[r]), str(self.catalogue.products[r])
        return Cell(self.item_images, *names, kind, note)
