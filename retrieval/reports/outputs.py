"""The files of one evaluation: its figures as JSON and CSV, plots, the report."""

import json

import numpy as np

from retrieval import progress
from retrieval.evaluation import similarity
from retrieval.evaluation.paired import LISTS
from retrieval.reports import evaluation_page, page, plots, selection
from trainer import files, filesets, tables

SHOWN = 12  # queries in top_retrieved.png
PLOTS = ("recall_at_k", "histogram")  # optional plots


def write(prefix, results, queries, catalogue, images, drawn=PLOTS):
    """Writes `<prefix>-eval.json` and its other files, replacing an earlier evaluation.

    All files are replaced together, so that figures and lists always belong to one evaluation.

    Args:
      prefix: path with which the names of all files begin.
      results: {title: `figures.Evaluation`}; the first is complete, the others are baselines.
      queries, catalogue: `Embedded`.
      images: function of 'queries' or 'catalogue' and ids [N] that returns {id: uint8 image} of
        the known images.
      drawn: which of `PLOTS` to draw.
    """
    with filesets.together(prefix) as staged:
        _write(staged, results, queries, catalogue, images, drawn)


def _write(prefix, results, queries, catalogue, images, drawn):
    result = next(iter(results.values()))
    figures = result.figures.to_json()
    histogram = similarity.histogram(queries, catalogue, result.figures.similarity)
    tables.write_csv(f"{prefix}-figures.csv", ["figure", "value"], _flat(files.plain(figures)))
    lists = top_retrieved(queries, catalogue, result.scores, result.rows)
    lists = progress.track(lists, len(queries), "writing the results")
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
    beside = dict(list(results.items())[:2])  # there is only space for raw pixels
    asked, found = chosen.wanted(list(beside.values()), shown)
    query_images = images("queries", queries.ids[sorted(asked)])
    item_images = images("catalogue", catalogue.ids[sorted(found)])
    if query_images and item_images:
        panels = plots.panels(queries, catalogue, beside, shown, query_images, item_images)
        plots.top_retrieved(f"{prefix}-top_retrieved.png", panels)
    evaluation_page.write(
        f"{prefix}-report.html",
        result=result,
        curves=curves,
        histogram=histogram,
        chosen=chosen,
        queries=queries,
        catalogue=catalogue,
        images=(query_images, item_images),
    )
    # The user fills in `corrected_product` and applies it to the data.
    tables.write_csv(
        f"{prefix}-suspected_labels.csv",
        ["id", "product", "suggested_product", "corrected_product"],
        ([queries.ids[q], queries.products[q], product, ""] for q, product in chosen.suspects),
    )
    write_figures(prefix, figures)


def write_figures(prefix, figures):
    """Writes `<prefix>-eval.json`, with checksums of itself and of its lists."""
    sums = {name: files.sha256(f"{prefix}-{name}") for name in LISTS}
    files.write_sealed(f"{prefix}-eval.json", figures | {"sha256": sums})


def write_stored(prefix, result, queries, catalogue):
    """Writes the evaluation of stored embeddings, with images that are files."""
    paths = {"queries": page.paths_of(queries), "catalogue": page.paths_of(catalogue)}

    def images(which, ids):
        return page.images_at({name: paths[which][name] for name in ids.tolist()})

    write(prefix, {"embeddings": result}, queries, catalogue, images)


def _some_rows(count, wanted, seed=0):
    """A fixed random choice of rows, in order."""
    random = np.random.default_rng(seed)
    return np.sort(random.permutation(count)[:wanted]).tolist()


def top_retrieved(queries, catalogue, scores, rows):
    """Yields the results of each query, as plain lists and dictionaries."""
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


def _flat(value, name=""):
    """Yields (dotted name, number) of nested figures; a value that JSON writes as null is empty."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "" if value is None else value


def write_queries(path, queries, catalogue, result):
    """Writes one line per query: the rank of its first relevant item, and the first result."""
    ranking = result.ranking

    def line(q):
        yield from (queries.ids[q], queries.products[q], queries.categories[q], ranking.relevant[q])
        if ranking.relevant[q]:
            yield from (ranking.first[q], f"{ranking.average_precision[q]:.6f}")
        else:
            yield from ("", "")
        r = result.rows[q, 0]
        if r >= 0:
            yield from (catalogue.ids[r], catalogue.products[r], f"{result.scores[q, 0]:.6f}")

    header = "id product category relevant rank average_precision found found_product score"
    tables.write_csv(path, header.split(), map(line, range(len(queries))))


def write_json_list(path, values):
    """Writes an iterable of plain values as a JSON list, one element per line."""
    with files.published(path, "w") as out:
        n = -1
        for n, value in enumerate(values):
            out.write("[" if n == 0 else ",\n")
            out.write(json.dumps(value, ensure_ascii=False, allow_nan=False))
        out.write("]\n" if n >= 0 else "[]\n")
