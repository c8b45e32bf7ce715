"""Compares two evaluations on the same queries: is B better than A, and where?

    python -m retrieval.compare A B [--output=DIR]

A and B are `…-eval.json` files of `retrieval.eval`, or folders that hold one (the newest step of
several). Differences are paired by query id, with 95% intervals from a bootstrap over products and
McNemar's exact test on the first result. Writes compare.json and compare.html; pictures are those
of ids that are image files, or of the datasets of the models that were evaluated.

    python -m retrieval.compare --old_queries=STORE --new_queries=STORE --old_catalogue=STORE
        [--new_catalogue=STORE] --output=DIR

asks whether a new model's queries work against the catalogue that an old model embedded (backward
compatibility): A is then old queries, B new ones against the same old catalogue. Stores are those
of `retrieval.embed`; a catalogue may also be the folder of an index that `retrieval.index` built,
which is then searched as it stands, too. With the new model's catalogue, too, it says how much of
the gain of embedding everything anew the new queries alone bring (Shen, Xiong, Xia and Soatto,
"Towards Backward-Compatible Representation Learning", CVPR 2020). Each pair's own report lies in
the output.
"""

import os
import sys

from absl import app, flags

from retrieval.evaluation.paired import compare, lists_of, load, verdict
from retrieval.ranking import vectors
from retrieval.reports import page
from retrieval.reports.comparison_page import COLUMNS, _cells, write_page
from retrieval.reports.selection import SHOWN
from trainer import config as trainer_config
from trainer import files

EACH = 24  # queries shown as won, and as lost


def main(evaluations, output, paths=None, backward=None, pictures=True):
    """Compares two evaluations and writes the result.

    paths: {id: image file}; if None, ids that are files themselves, and the datasets of the models
    that were evaluated. backward: figures to write along, of `retrieval.backward`. pictures: show
    any.
    """
    a, b = (load(path) for path in evaluations)
    result = compare(a, b)
    if backward:
        result["backward"] = backward
    os.makedirs(output, exist_ok=True)
    shown = {title: _one_each(result[title], a["queries"]) for title in ("won", "lost")}
    asked = {name for names in shown.values() for name in names}
    lists = {side: lists_of(e, asked) for side, e in (("A", a), ("B", b))}
    items = {
        item["media"]
        for entries in lists.values()
        for entry in entries.values()
        for item in entry["results"][:SHOWN]
    }
    images = _images((a, b), asked, items, paths) if pictures and asked else {}
    files.write_json(os.path.join(output, "compare.json"), result)
    ranks = {
        side: {name: e["queries"][name]["rank"] for name in asked}
        for side, e in (("A", a), ("B", b))
    }
    write_page(os.path.join(output, "compare.html"), result, shown, lists, ranks, images)
    print_table(result)
    print(f"Wrote {output}/compare.html and compare.json")


def _one_each(names, queries):
    """The first query of every product, up to EACH of them."""
    first = {}
    for name in names:
        first.setdefault(queries[name]["product"], name)
    return list(first.values())[:EACH]


def _images(evaluated, queries, items, paths):
    """Pictures {id: uint8 image}: files, or out of the datasets of the evaluated models."""
    images = page.pictures_at({n: n if paths is None else paths.get(n, n) for n in queries | items})
    models = [m for e in evaluated for m in (e["figures"], *e["figures"].get("made_by", ()))]
    models = {(m["model"], m["checkpoint"]) for m in models if "model" in m}
    for name, checkpoint in sorted(models):
        if not (queries | items) - images.keys():
            break
        from trainer import quiet

        quiet.import_tensorflow()  # before others do, with its banner
        from retrieval.embeddings import embedder
        from trainer import experiment

        try:
            model = trainer_config.load_model(name)
            experiment.locate(model, (), checkpoint)
            images |= embedder.pictures_of(model, "retrieval_index", items - images.keys())
            images |= embedder.pictures_of(model, "retrieval_query", queries - images.keys())
        except ValueError as error:
            print(f"no pictures of {name}: {' '.join(str(error).split())}", file=sys.stderr)
    return images


def print_table(result):
    from rich.console import Console
    from rich.table import Table

    table = Table(title="B against A")
    for column in ("", "A", "B", "B - A", "95% interval"):
        table.add_column(column, justify="right")
    for name, d in result["difference"].items():
        low, high = d["interval95"]
        table.add_row(
            *(name, f"{d['a']:.3f}", f"{d['b']:.3f}", f"{d['difference']:+.3f}"),
            f"{low:+.3f} to {high:+.3f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    test = result["mcnemar"]
    print(
        f"{result['num_queries']} queries in both; first results won {test['won']}, "
        f"lost {test['lost']}, McNemar p = {test['p_value']:.2g}. {verdict(result)}"
    )
    if result["unlike"]:
        print(f"warning: {result['unlike']}", file=sys.stderr)
    if "backward" in result:
        names = list(next(iter(result["backward"].values())))
        table = Table(title="Backward compatibility")
        for column in ("", *(COLUMNS[name] for name in names)):
            table.add_column(column, justify="right")
        for cells in _cells(result["backward"], names):
            table.add_row(*cells)
        console.print(table)


def run(argv=None):
    flags.DEFINE_string("output", ".", "Folder for compare.json and compare.html.")
    flags.DEFINE_boolean("pictures", True, "Show the pictures of the queries won and lost.")
    names = ("old_queries", "new_queries", "old_catalogue", "new_catalogue")
    for name in names:
        what, kind = name.split("_")
        place = "store or of the index" if kind == "catalogue" else "store"
        say = f"For backward compatibility: folder of the {place} of the {what} model's {kind}."
        flags.DEFINE_string(name, None, say)
    flags.DEFINE_enum("similarity", "cosine", vectors.SIMILARITIES, "How near two embeddings are; "
                      "of stores only, as evaluations tell theirs.")  # fmt: skip
    app.define_help_flags()
    try:
        rest = flags.FLAGS(sys.argv if argv is None else argv)[1:]
        options = flags.FLAGS
        stores = {name: getattr(options, name) for name in names if getattr(options, name)}
        if stores:
            missing = [name for name in names[:3] if name not in stores]
            if missing or rest:
                what = f"--{missing[0]}" if missing else "no further argument"
                raise ValueError(f"backward compatibility needs {what}: see --help")
            from retrieval.evaluation import backward

            rates, paths = backward.evaluate(stores, options.output, options.similarity)
            pair = [os.path.join(options.output, name) for name in ("old", "new_on_old")]
            main(pair, options.output, paths=paths, backward=rates)
            return
        if len(rest) != 2:
            raise ValueError("name two evaluations: python -m retrieval.compare A B")
        main(rest, options.output, pictures=options.pictures)
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped: what was not written yet is lost", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
