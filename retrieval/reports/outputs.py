"""The files of one evaluation: its figures as JSON and CSV, pictures, the report."""

import contextlib
import csv
import json
import os

import numpy as np

from retrieval import progress
from retrieval.evaluation.figures import similarity_histogram
from retrieval.reports import evaluation_page, page, plots, selection
from trainer import files

SHOWN = 12  # queries in the picture
DRAWINGS = ("recall_at_k", "histogram")  # pictures that a model can do without


def write(prefix, figures, results, queries, catalogue, images, drawn=DRAWINGS):
    """Writes `<prefix>-eval.json` and all that lies beside it. An earlier one goes first, so that
    figures never stand beside lists of another evaluation.

    results: {title: Evaluation}, the one in question first. images(which, ids): pictures {id:
    uint8 image} of 'queries' or 'catalogue', as many as there are. drawn: which of DRAWINGS.
    """
    result = next(iter(results.values()))
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{prefix}-eval.json")
    histogram = similarity_histogram(queries, catalogue, figures["similarity"])
    _write_figures(f"{prefix}-figures.csv", figures)
    lists = top_retrieved(queries, catalogue, result.scores, result.rows)
    lists = progress.track(lists, len(queries), "writing what was retrieved")
    write_json_list(f"{prefix}-top_retrieved.json", lists)
    files.write_json(f"{prefix}-histogram.json", histogram)
    write_queries(f"{prefix}-queries.csv", queries, catalogue, result)
    if "histogram" in drawn:
        plots.histogram(f"{prefix}-histogram.png", histogram)
    curves = {title: plots.recall_curve(r.ranking) for title, r in results.items()}
    if "recall_at_k" in drawn:
        plots.recall_at_k(f"{prefix}-recall_at_k.png", curves)
    chosen = selection.choose(queries, catalogue, result)
    shown = _some_rows(len(queries), SHOWN)
    wanted = selection.wanted(chosen, results, shown)
    query_images = images("queries", queries.ids[sorted(wanted["queries"])])
    item_images = images("catalogue", catalogue.ids[sorted(wanted["catalogue"])])
    if query_images and item_images:
        beside = dict(list(results.items())[:2])  # the colour histogram has no place there
        panels = plots.panels(queries, catalogue, beside, shown, query_images, item_images)
        plots.top_retrieved(f"{prefix}-top_retrieved.png", panels)
    evaluation_page.write(
        f"{prefix}-report.html",
        figures=figures,
        curves=curves,
        histogram=histogram,
        chosen=chosen,
        queries=queries,
        catalogue=catalogue,
        result=result,
        images=(query_images, item_images),
    )
    _write_suspects(f"{prefix}-suspected_labels.csv", chosen, queries, catalogue)
    files.write_json(f"{prefix}-eval.json", figures)  # last: where it is, all is there


def write_stored(prefix, figures, result, queries, catalogue):
    """Writes the evaluation of stored embeddings, with the pictures that are files."""

    def images(which, ids):
        items = queries if which == "queries" else catalogue
        paths = items.ids if items.paths is None else items.paths
        at = dict(zip(items.ids.tolist(), paths.tolist(), strict=True))
        return page.pictures_at({name: at[name] for name in ids.tolist()})

    write(prefix, figures, {"embeddings": result}, queries, catalogue, images)


def _some_rows(count, wanted, seed=0):
    """A fixed random choice of rows, in order."""
    random = np.random.default_rng(seed)
    return np.sort(random.permutation(count)[:wanted]).tolist()


def top_retrieved(queries, catalogue, scores, rows):
    """Yields what was found for each query, as plain lists and dictionaries."""
    for q in range(len(queries)):
        right = catalogue.products[rows[q]] == queries.products[q]
        yield {
            "media": str(queries.ids[q]),
            "product": str(queries.products[q]),
            "results": [
                {
                    "media": str(catalogue.ids[r]),
                    "product": str(catalogue.products[r]),
                    "score": round(float(s), 6),
                    "relevant": bool(ok),
                }
                for s, r, ok in zip(scores[q], rows[q], right, strict=True)
                if r >= 0
            ],
        }


def _write_figures(path, figures):
    """Every number of the evaluation as a line `figure,value`, nested names joined by dots."""
    with files.published(path, "w") as out:
        table = csv.writer(out)
        table.writerow(["figure", "value"])
        table.writerows(_flat(files.plain(figures)))


def _flat(value, name=""):
    """Yields (dotted name, value); what JSON writes as null is left empty."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "" if value is None else value


def write_queries(path, queries, catalogue, result):
    """One line a query: where its first relevant item stands, and what was found instead."""
    ranking = result.ranking
    with files.published(path, "w") as out:
        table = csv.writer(out)
        header = "id product category relevant rank average_precision found found_product score"
        table.writerow(header.split())
        for q in range(len(queries)):
            row = [queries.ids[q], queries.products[q], queries.categories[q], ranking.relevant[q]]
            if ranking.relevant[q]:
                row += [ranking.first[q], f"{ranking.average_precision[q]:.6f}"]
            else:
                row += ["", ""]
            r = result.rows[q, 0]
            if r >= 0:
                row += [catalogue.ids[r], catalogue.products[r], f"{result.scores[q, 0]:.6f}"]
            table.writerow(row)


def _write_suspects(path, chosen, queries, catalogue):
    """Queries that look mislabelled; fill in `corrected_product` and apply it to the data."""
    with files.published(path, "w") as out:
        table = csv.writer(out)
        table.writerow(["id", "product", "suggested_product", "corrected_product"])
        for q, product in chosen["suspects"]:
            table.writerow([queries.ids[q], queries.products[q], product, ""])


def write_json_list(path, values):
    """Writes a JSON list of plain values, one element a line."""
    with files.published(path, "w") as out:
        for n, value in enumerate(values):
            out.write("[" if n == 0 else ",\n")
            out.write(json.dumps(value, ensure_ascii=False, allow_nan=False))
        out.write("]\n" if values else "[]\n")
