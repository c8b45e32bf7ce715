"""The report: one HTML file with the figures of an evaluation and images."""

import dataclasses
import math
from typing import NamedTuple

from retrieval.embeddings.store import Embedded
from retrieval.evaluation.baselines import TITLES
from retrieval.evaluation.figures import FEW, Evaluation
from retrieval.reports import charts, explorer, page, selection
from retrieval.reports.page import Cell

MOST_CATEGORIES = 40  # the categories with the lowest recall are listed; figures.csv has all
RERANKING = {
    "aqe": "Query expansion (aqe)",
    "dba": "Catalogue averaging (dba)",
    "k_reciprocal": "k-reciprocal",
}


class Rate(NamedTuple):
    """A row of the summary: a figure of the embedding and of each baseline.

    intervals: (low, high) per figure, or None. form: a format.
    """

    title: str
    values: list
    intervals: list
    form: str


def write(path, *, result, curves, histogram, chosen, queries, catalogue, images):
    """Writes the report.

    Args:
      path: the HTML file.
      result: the complete `figures.Evaluation`.
      curves: {title: recall over k, see `plots.recall_curve`}.
      histogram: the result of `similarity.histogram`.
      chosen: the result of `selection.choose`.
      queries, catalogue: `Embedded`.
      images: ({id: image} of queries, {id: image} of catalogue items).
    """
    figures = result.figures
    of_page, known = page.Images(), []
    for items, found, rows in zip(
        (queries, catalogue), images, chosen.wanted([result]), strict=True
    ):
        names = items.ids[sorted(rows)].tolist()
        known.append(of_page.add({name: found[name] for name in names if name in found}))
    show = _Gallery(queries, catalogue, result, chosen.answers, *known)
    listed = explorer.data_of(queries, catalogue, result, chosen, *known)
    hubs = [show.item(r, "wrong", f"{n:,} times") for r, n in chosen.hubs]
    baselines = {
        title.capitalize(): getattr(figures, name)
        for name, title in TITLES.items()
        if getattr(figures, name)
    }
    intervals = {k: figures.intervals[f"recall@{k}"] for k in figures.recall}
    k = min(figures.recall)
    rated = [each for each in figures.per_category.items() if math.isfinite(each[1].recall[k])]
    both = (queries.categories != "").any() and (catalogue.categories != "").any()
    titles, counts = selection.category_confusion(queries, catalogue, result) if both else ([], [])
    page.write(
        path,
        "evaluation.html",
        title="Retrieval report",
        figures=figures,
        few=FEW,
        plane=explorer.map_of(queries, catalogue, listed, figures.similarity),
        data={
            "images": of_page.urls,
            "items": listed["items"],
            "queries": listed["queries"],
            "rejection": figures.rejection.to_json() if figures.rejection else {},
        },
        rates=list(_rates([figures, *baselines.values()])),
        baselines=list(baselines),
        curves=curves,
        recall_chart=charts.recall(curves, intervals),
        histogram_chart=charts.histogram(histogram),
        rated=sorted(rated, key=lambda item: item[1].recall[k]),
        most_categories=MOST_CATEGORIES,
        method_titles=[RERANKING[method] for method in figures.rerank],
        confused=selection.confusion(queries, catalogue, result),
        confused_categories=list(zip(titles, counts, strict=True)),
        hub_depth=min(selection.HUB_DEPTH, result.rows.shape[1]),
        num_suspects=len(chosen.suspects),
        lines={
            "worst": list(map(show.query, chosen.worst)),
            "near": list(map(show.query, chosen.near)),
            "hits": list(map(show.query, chosen.hits)),
            "hubs": [hubs] if hubs else [],
            "suspects": [show.query(q) for q, _ in chosen.suspects[: selection.EACH]],
        },
    )


def _rates(sets):
    """The rows of the summary for these `Figures`, the embedding's first."""
    rows = [
        (f"{name}@{k}", [getattr(f, name)[k] for f in sets], f"{name}@{k}", ".3f")
        for name in ("recall", "precision")
        for k in getattr(sets[0], name)
    ]
    for title, name, key, form in (
        ("MAP@R", "map_at_r", "map@r", ".3f"),
        ("R-precision", "r_precision", None, ".3f"),
        ("MRR", "mrr", "mrr", ".3f"),
        ("mean rank", "mean_rank", None, ",.1f"),
        ("median rank", "median_rank", None, ",.1f"),
    ):
        rows.append((title, [getattr(f, name) for f in sets], key, form))
    for title, values, key, form in rows:
        yield Rate(title, values, [f.intervals.get(key) for f in sets], form)


@dataclasses.dataclass(frozen=True)
class _Gallery:
    """Rows of images: a query with its first results, or items alone."""

    queries: Embedded
    catalogue: Embedded
    result: Evaluation
    answers: dict
    query_images: dict
    item_images: dict

    def query(self, q):
        rank, product = int(self.result.ranking.first[q]), str(self.queries.products[q])
        # Distances are stored as negative scores, so that larger is nearer.
        sign = -1 if self.result.figures.similarity == "euclidean" else 1
        note = f"query; relevant item at rank {rank}" if rank else "query"
        cells = [Cell(self.query_images, str(self.queries.ids[q]), product, "query", note)]
        shown = zip(self.result.rows[q, : selection.SHOWN], self.result.scores[q], strict=False)
        for r, score in shown:
            if r >= 0:
                kind = "right" if self.catalogue.products[r] == product else "wrong"
                cells.append(self.item(r, kind, f"{sign * score:.3f}"))
        if q in self.answers:
            r, score = self.answers[q]
            cells.append(self.item(r, "missed", f"relevant, rank {rank}: {score:.3f}"))
        return cells

    def item(self, r, kind, note):
        names = str(self.catalogue.ids[r]), str(self.catalogue.products[r])
        return Cell(self.item_images, *names, kind, note)
