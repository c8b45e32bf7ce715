"""The files that compare two evaluations: compare.json and a page."""

import math
import os
import sys

from retrieval.evaluation.paired import lists_of
from retrieval.reports import page
from retrieval.reports.selection import SHOWN
from trainer import commandline, files, filesets, quiet

EACH = 24  # queries shown per side
TITLES = {"map@r": "MAP@R", "mrr": "MRR"}
COLUMNS = {
    "old": "Old queries, old catalogue",
    "new_on_old": "New queries, old catalogue",
    "new": "New queries, new catalogue",
    "share_of_gain": "Share of the gain",
}


def write(folder, a, b, result, paths=None, with_images=True, allow_code=False):
    """Writes compare.json and compare.html.

    Args:
      folder: made if it does not exist.
      a, b: the `paired.Written` evaluations.
      result: their `paired.Comparison`.
      paths: see `images_of`.
      with_images: show images on the page.
      allow_code: see `images_of`.
    """
    sides = {"A": a, "B": b}
    called = {"A": result.name_a, "B": result.name_b}
    shown = {kind: _one_each(getattr(result, kind), a.queries) for kind in ("won", "lost")}
    asked = {name for names in shown.values() for name in names}
    lists = {side: lists_of(each, asked) for side, each in sides.items()}
    entries = [entry for of_side in lists.values() for entry in of_side.values()]
    items = {item["media"] for entry in entries for item in entry["results"][:SHOWN]}
    models = {each for side in sides.values() for each in side.figures.models}
    images = images_of(models, asked, items, paths, allow_code) if with_images and asked else {}

    def line(side, name):
        entry, note = lists[side][name], f"{called[side]}: relevant item at rank"
        note = f"{note} {sides[side].queries[name].rank}"
        return [
            page.Cell(images, name, entry["product"], "query", note),
            *(
                page.Cell(
                    images,
                    item["media"],
                    item["product"],
                    "right" if item["relevant"] else "wrong",
                    f"{item['score']:.3f}",
                )
                for item in entry["results"][:SHOWN]
            ),
        ]

    header, rows = backward_table(result.backward)
    with filesets.together(os.path.join(folder, "compare")) as staged:
        files.write_json(f"{staged}.json", result.to_json())
        page.write(
            f"{staged}.html",
            "comparison.html",
            title=f"{result.name_b} against {result.name_a}",
            titles=TITLES,
            result=result,
            backward_header=header,
            backward_rows=rows,
            lines={k: [line(s, n) for n in names for s in sides] for k, names in shown.items()},
        )


def _one_each(names, queries):
    """The first query of each product, at most EACH queries."""
    first = {}
    for name in names:
        first.setdefault(queries[name].product, name)
    return list(first.values())[:EACH]


def backward_table(rates):
    """{figure: `backward.Rates`} as a header and rows of text; empty if there are none."""
    given = [each.to_json() for each in rates.values()]
    names = list(given[0]) if given else []
    rows = []
    for figure, values in zip(rates, given, strict=True):
        shown = {n: f"{v:.3f}" if math.isfinite(v) else "no gain" for n, v in values.items()}
        rows.append([TITLES.get(figure, figure), *(shown.get(name, "") for name in names)])
    return ["", *(COLUMNS[name] for name in names)], rows


def images_of(models, queries, items, paths=None, allow_code=False):
    """Finds images by id: in files, else in the data sets of the evaluated models.

    Args:
      models: set of `figures.Source`.
      queries, items: sets of ids.
      paths: {id: path of an image file}; an id that is not in it may itself be a path.
      allow_code: also import models other than this project's: an evaluation from another source
        may name any module.

    Returns:
      {id: uint8 [H, W, C]} of the images that exist.
    """
    images = page.images_at({name: (paths or {}).get(name, name) for name in queries | items})
    for source in sorted(models, key=lambda source: (source.model, source.checkpoint or "")):
        if not (queries | items) - images.keys():
            break
        if not (allow_code or source.model.startswith("models.")):
            print(
                f"no images of {source.model}: the evaluation names this module; --allow_code "
                "imports it",
                file=sys.stderr,
            )
            continue
        quiet.import_tensorflow()  # before other imports, which would print its banner
        from retrieval.embeddings import images as embedded_images
        from trainer import experiment

        try:
            model = commandline.load_model(source.model)
            experiment.locate(model, (), source.checkpoint)
            for name, ids in (("retrieval_index", items), ("retrieval_query", queries)):
                missing = ids - images.keys()
                images |= embedded_images.wanted_of(model, name, missing, page.image_at)
        except ValueError as error:
            print(f"no images of {source.model}: {' '.join(str(error).split())}", file=sys.stderr)
    return images
