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

import csv
import json
import math
import os
import re
import sys

import numpy as np
from absl import app, flags

from retrieval import evaluation, files, page, vectors
from retrieval.gallery import SHOWN
from trainer import config as trainer_config

EACH = 24  # queries shown as won, and as lost


def load(path):
    """One evaluation: {'path', 'figures', 'queries': {query id: row}}."""
    path = os.fspath(path)
    if os.path.isdir(path):
        folder = path if not os.path.isdir(f"{path}/analysis") else f"{path}/analysis"
        found = [name for name in os.listdir(folder) if name.endswith("-eval.json")]
        if not found:
            raise ValueError(f"{path}: holds no …-eval.json; run retrieval.eval first")
        newest = max(found, key=lambda name: int((re.findall(r"\d+", name) or [0])[-1]))
        path = os.path.join(folder, newest)
    prefix = path.removesuffix("-eval.json")
    if not os.path.exists(path):
        raise ValueError(f"{path}: there is no such file or folder; run retrieval.eval first")
    if prefix == path:
        raise ValueError(f"{path}: is not an …-eval.json of retrieval.eval")
    try:
        with open(path, encoding="utf-8") as text:
            figures = json.load(text)
        with open(f"{prefix}-queries.csv", encoding="utf-8", newline="") as text:
            queries = {row["id"]: row for row in csv.DictReader(text)}
        for row in queries.values():
            row["rank"] = int(row["rank"] or 0)
            row["average_precision"] = float(row["average_precision"] or "nan")
        whole = len(queries) == figures["num_queries"] and figures["recall@k"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    if not whole:
        raise ValueError(
            f"{prefix}-queries.csv: holds {len(queries)} queries, not those of {path}; run that "
            "retrieval.eval again"
        )
    return {"path": path, "figures": figures, "queries": queries}


def lists_of(evaluated, wanted):
    """{query id: what was retrieved} of the wanted ids of a loaded evaluation."""
    path = evaluated["path"].removesuffix("-eval.json") + "-top_retrieved.json"
    found = {}
    try:
        with open(path, encoding="utf-8") as text:
            for line in text:  # an entry a line: all of them at once would take gigabytes
                if line.strip("[]\n"):
                    entry = json.loads(line.strip("\n,").removeprefix("[").removesuffix("]"))
                    if entry["media"] in wanted:
                        found[entry["media"]] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(f"{path}: lacks query {missing[0]!r}; run that retrieval.eval again")
    return found


def compare(a, b, replicates=evaluation.REPLICATES, seed=0):
    """Differences B - A over the queries that both can answer.

    Returns {'num_queries', 'only_in_a', 'only_in_b', 'unlike', 'difference': {figure: {'a', 'b',
    'difference', 'interval95'}}, 'mcnemar': {'won', 'lost', 'p_value'}, 'won', 'lost': query ids}.
    unlike: a sentence on what was searched, and how, where that is not the same; otherwise ''.
    """
    answered = [{i for i, r in e["queries"].items() if r["rank"]} for e in (a, b)]
    shared = sorted(answered[0] & answered[1])
    if not shared:
        raise ValueError(f"{a['path']} and {b['path']} share no query that both can answer")
    moved = [i for i in shared if a["queries"][i]["product"] != b["queries"][i]["product"]]
    if moved:
        raise ValueError(
            f"query {moved[0]!r} has another product in {b['path']}: not the same data"
        )
    products = np.array([a["queries"][i]["product"] for i in shared])
    ks = [int(k) for k in a["figures"]["recall@k"] if k in b["figures"]["recall@k"]]
    names = [*(f"recall@{k}" for k in ks), "map@r", "mrr"]
    values, ranks = [], []
    for e in (a, b):
        rank = np.array([e["queries"][i]["rank"] for i in shared])
        ap = np.array([e["queries"][i]["average_precision"] for i in shared])
        values.append(np.stack([*(rank <= k for k in ks), ap, 1 / rank], 1).astype(float))
        ranks.append(rank)
    drawn = evaluation.bootstrap(values[1] - values[0], products, replicates, seed)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    difference = {
        name: {
            "a": float(values[0][:, n].mean()),
            "b": float(values[1][:, n].mean()),
            "difference": float((values[1] - values[0])[:, n].mean()),
            "interval95": [float(low[n]), float(high[n])],
        }
        for n, name in enumerate(names)
    }
    shared = np.array(shared)
    won = (ranks[0] > 1) & (ranks[1] == 1)
    lost = (ranks[0] == 1) & (ranks[1] > 1)
    # What changed most first.
    gain = np.log(ranks[0]) - np.log(ranks[1])
    order = np.argsort(-np.abs(gain), kind="stable")
    return {
        "a": a["path"],
        "b": b["path"],
        "num_queries": len(shared),
        "only_in_a": len(answered[0] - answered[1]),
        "only_in_b": len(answered[1] - answered[0]),
        "unlike": _unlike(a, b, shared),
        "difference": difference,
        "mcnemar": {
            "won": int(won.sum()),
            "lost": int(lost.sum()),
            "p_value": mcnemar(int(won.sum()), int(lost.sum())),
        },
        "won": shared[order][won[order]].tolist(),
        "lost": shared[order][lost[order]].tolist(),
    }


def _unlike(a, b, shared):
    searched = [
        f"{e['figures']['num_catalogue']:,} catalogue items by {e['figures']['similarity']}"
        for e in (a, b)
    ]
    relevant = [[e["queries"][i]["relevant"] for i in shared] for e in (a, b)]
    if searched[0] != searched[1]:
        return f"A searched {searched[0]}, B {searched[1]}: the difference is of that, too."
    if relevant[0] != relevant[1]:
        return "A and B searched catalogues of other items: the difference is of that, too."
    return ""


def mcnemar(won, lost):
    """Two-sided exact p-value that as many queries are won as lost (McNemar, 1947)."""
    n, k = won + lost, min(won, lost)
    log = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = math.fsum(math.exp(value - n * math.log(2)) for value in log)
    return min(1.0, 2 * tail)


def write_page(path, result, shown, lists, ranks, images):
    """Writes the comparison as one HTML page.

    shown: {'won', 'lost': query ids}. lists: {'A', 'B': {query id: entry of …-top_retrieved.json}}.
    ranks: {'A', 'B': {query id: rank of the first right item}}. images: {id: uint8 image}, as many
    as there are.
    """
    test = result["mcnemar"]
    rows = [
        [
            page.text(title.upper() if title in ("map@r", "mrr") else title),
            *(f"{d['a']:.3f}", f"{d['b']:.3f}", f"<b>{d['difference']:+.3f}</b>"),
            f"<span class=dim>{d['interval95'][0]:+.3f} to {d['interval95'][1]:+.3f}</span>",
        ]
        for title, d in result["difference"].items()
    ]
    only = "".join(
        f" {result[f'only_in_{side}']:,} more are in {side.upper()} only and count for neither."
        for side in "ab"
        if result[f"only_in_{side}"]
    )
    sections = [
        (
            "Summary",
            f"<p>{verdict(result)} {page.text(result['unlike'])}</p>"
            + page.table(["", "A", "B", "B - A", "95% interval"], rows)
            + f"<p>{result['num_queries']:,} queries that both evaluations can answer, paired by "
            f"id.{only} The intervals draw whole products. The first result is right in B alone "
            f"for {test['won']:,} queries (won) and in A alone for {test['lost']:,} (lost); were "
            "both models equally good, a split as uneven would come by chance with probability "
            f"{test['p_value']:.2g} (McNemar's exact test, which takes queries of one product as "
            "independent; the intervals do not).</p>",
        ),
        ("Backward compatibility", _backward(result["backward"]) if "backward" in result else ""),
    ]
    for title, names in shown.items():
        rows = []
        for name in names:
            for side in "AB":
                entry = lists[side][name]
                note = f"{side}: right item at rank {ranks[side][name]}"
                cells = [page.picture(images, name, entry["product"], "query", note)]
                cells += [
                    page.picture(
                        *(images, item["media"], item["product"]),
                        *("right" if item["relevant"] else "wrong", f"{item['score']:.3f}"),
                    )
                    for item in entry["results"][:SHOWN]
                ]
                rows.append(page.row(cells))
        note = (
            f"<p>The first result is right in {'B' if title == 'won' else 'A'} only. Above what A "
            f"retrieved, below B; {len(names)} of {len(result[title]):,}, one a product, the "
            "greatest change of rank first. compare.json lists all.</p>"
        )
        sections.append((f"Queries {title} by B", note + "".join(rows) if rows else ""))
    head = f"<p class=sub>A: {page.text(result['a'])}<br>B: {page.text(result['b'])}</p>"
    page.write(path, "B against A", head, sections)


def verdict(result) -> str:
    """What the comparison says of the first result."""
    figure, d = next(iter(result["difference"].items()))
    low, high = d["interval95"]
    if low <= 0 <= high:
        return f"No difference in {figure} that the queries could tell: the interval holds 0."
    better = "better" if low > 0 else "worse"
    return f"B is {better} in {figure}: the interval of the difference excludes 0."


COLUMNS = {
    "old": "Old queries, old catalogue",
    "new_on_old": "New queries, old catalogue",
    "new": "New queries, new catalogue",
    "share_of_gain": "Share of the gain",
}


def _backward(rates):
    names = list(next(iter(rates.values())))
    rows = [[page.text(figure), *cells] for figure, *cells in _cells(rates, names)]
    note = (
        "The new queries work with the old catalogue where they find at least what the old ones do."
    )
    if "new" in names:
        note += (
            " Share of the gain: of what embedding the catalogue anew gains, the part that the new "
            "queries bring without it."
        )
    return f"<p>{note}</p>" + page.table(["", *(COLUMNS[name] for name in names)], rows)


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
        from retrieval import passes
        from trainer import experiment

        try:
            model = trainer_config.load_model(name)
            experiment.locate(model, (), checkpoint)
            images |= passes.pictures_of(model, "retrieval_index", items - images.keys())
            images |= passes.pictures_of(model, "retrieval_query", queries - images.keys())
        except ValueError as error:
            print(f"no pictures of {name}: {' '.join(str(error).split())}", file=sys.stderr)
    return images


def _cells(rates, names):
    """Rows of text: a figure, then its value for each of `names`."""
    for figure, values in rates.items():
        shown = {name: f"{v:.3f}" if np.isfinite(v) else "no gain" for name, v in values.items()}
        title = "MAP@R" if figure == "map@r" else figure
        yield [title, *(shown.get(name, "") for name in names)]


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
            from retrieval import backward

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
