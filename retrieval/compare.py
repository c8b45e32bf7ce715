"""Compares two evaluations on the same queries: is B better than A, and where?

    python -m retrieval.compare A B [--output=DIR] [--model=models.simple]

A and B are `…-eval.json` files of `retrieval.eval`, or folders that hold one (the newest step of
several). Differences are paired by query id, with 95% intervals from a bootstrap over products and
McNemar's exact test on the first result. Writes compare.json and compare.html; pictures are those
of ids that are image files, or of the datasets of --model.

    python -m retrieval.compare --old_queries=STORE --new_queries=STORE --old_catalogue=STORE
        [--new_catalogue=STORE] --output=DIR

asks whether a new model's queries work against the catalogue that an old model embedded (backward
compatibility): A is then old queries, B new ones against the same old catalogue. Stores are those
of `retrieval.embed`. With the new model's catalogue, too, it says how much of the gain of embedding
everything anew the new queries alone bring (Shen, Xiong, Xia and Soatto, "Towards
Backward-Compatible Representation Learning", CVPR 2020). Each pair's own report lies in the output.
"""

import csv
import json
import math
import os
import re
import sys

import numpy as np
from absl import app, flags

from retrieval import evaluation, files, report, store, vectors
from trainer import config as trainer_config


def load(path):
    """One evaluation: {'figures', 'lists': {query id: entry}, 'queries': {query id: row}}."""
    path = os.fspath(path)
    if os.path.isdir(path):
        folder = path if not os.path.isdir(f"{path}/analysis") else f"{path}/analysis"
        found = [name for name in os.listdir(folder) if name.endswith("-eval.json")]
        if not found:
            raise ValueError(f"{path}: holds no …-eval.json; run retrieval.eval first")
        newest = max(found, key=lambda name: int((re.findall(r"\d+", name) or [0])[-1]))
        path = os.path.join(folder, newest)
    prefix = path.removesuffix("-eval.json")
    if prefix == path:
        raise ValueError(f"{path}: is not an …-eval.json of retrieval.eval")
    try:
        with open(path, encoding="utf-8") as text:
            figures = json.load(text)
        with open(f"{prefix}-top_retrieved.json", encoding="utf-8") as text:
            lists = {entry["media"]: entry for entry in json.load(text)}
        with open(f"{prefix}-queries.csv", encoding="utf-8", newline="") as text:
            queries = {row["id"]: row for row in csv.DictReader(text)}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    return {"path": path, "figures": figures, "lists": lists, "queries": queries}


def compare(a, b, replicates=evaluation.REPLICATES, seed=0):
    """Differences B - A over the queries that both can answer.

    Returns {'num_queries', 'only_in_a', 'only_in_b', 'difference': {figure: {'a', 'b',
    'difference', 'interval95'}}, 'mcnemar': {'won', 'lost', 'p_value'}, 'won', 'lost': query ids}.
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
        rank = np.array([int(e["queries"][i]["rank"]) for i in shared])
        ap = np.array([float(e["queries"][i]["average_precision"]) for i in shared])
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
        "difference": difference,
        "mcnemar": {
            "won": int(won.sum()),
            "lost": int(lost.sum()),
            "p_value": mcnemar(int(won.sum()), int(lost.sum())),
        },
        "won": shared[order][won[order]].tolist(),
        "lost": shared[order][lost[order]].tolist(),
    }


def mcnemar(won, lost):
    """Two-sided exact p-value that as many queries are won as lost (McNemar, 1947)."""
    n, k = won + lost, min(won, lost)
    log = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = math.fsum(math.exp(value - n * math.log(2)) for value in log)
    return min(1.0, 2 * tail)


def page(result, a, b, images, shown=24):
    """The comparison as one HTML page. images: {id: uint8 image}, as many as there are."""
    rows = "".join(
        f"<tr><th>{report.text(name)}</th><td>{d['a']:.3f}</td><td>{d['b']:.3f}</td>"
        f"<td>{d['difference']:+.3f}</td><td class=dim>{d['interval95'][0]:+.3f} to "
        f"{d['interval95'][1]:+.3f}</td></tr>"
        for name, d in result["difference"].items()
    )
    test = result["mcnemar"]
    parts = [
        f"<h1>B against A</h1><p class=sub>A: {report.text(a['path'])}<br>B: "
        f"{report.text(b['path'])}</p><section><div class=scroll><table><tr><th></th><th>A</th>"
        f"<th>B</th><th>B - A</th><th>95%</th></tr>{rows}</table></div><p>"
        f"{result['num_queries']} queries in both; first results won {test['won']}, lost "
        f"{test['lost']}, McNemar p = {test['p_value']:.2g}.</p></section>"
    ]
    if "backward" in result:
        parts.append(report.section("Backward compatibility", _backward(result["backward"])))
    for title in ("won", "lost"):
        body = []
        for name in result[title][:shown]:
            for side, e in (("A", a), ("B", b)):
                entry = e["lists"][name]
                note = f"{side}: rank {e['queries'][name]['rank']}"
                cells = [report.cell(images, name, entry["product"], "query", note)]
                cells += [
                    report.cell(
                        *(images, item["media"], item["product"]),
                        *("right" if item["relevant"] else "wrong", f"{item['score']:.3f}"),
                    )
                    for item in entry["results"][: report.SHOWN]
                ]
                body.append(f"<div class=row>{''.join(cells)}</div>")
        parts.append(report.section(f"Queries {title} by B", "".join(body)))
    return report.page("B against A", parts)


COLUMNS = {
    "old": "old queries, old catalogue",
    "new_on_old": "new queries, old catalogue",
    "new": "new queries, new catalogue",
    "share_of_gain": "share of the gain",
}


def _backward(rates):
    names = list(next(iter(rates.values())))
    head = "".join(f"<th>{COLUMNS[name]}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{report.text(figure)}</th>"
        + "".join(f"<td>{v:.3f}</td>" if np.isfinite(v) else "<td></td>" for v in values.values())
        + "</tr>"
        for figure, values in rates.items()
    )
    return f"<div class=scroll><table><tr><th></th>{head}</tr>{rows}</table></div>"


def main(evaluations, output, model=None, paths=None, backward=None):
    """Compares two evaluations and writes the result. paths: {id: image file}, ids that are files
    themselves if None. backward: figures to write along, of `backward`."""
    a, b = (load(path) for path in evaluations)
    result = compare(a, b)
    if backward:
        result["backward"] = backward
    os.makedirs(output, exist_ok=True)
    shown = {*result["won"][:24], *result["lost"][:24]}
    items = {
        item["media"]
        for e in (a, b)
        for name in shown
        for item in e["lists"][name]["results"][: report.SHOWN]
    }
    if model:
        from trainer import quiet

        quiet.import_tensorflow()
        from retrieval import embed

        module = trainer_config.load_model(model)
        images = embed.pictures_of(module, "retrieval_index", items)
        images |= embed.pictures_of(module, "retrieval_query", shown)
    else:
        wanted = shown | items
        images = report.files_of({n: n if paths is None else paths.get(n, n) for n in wanted})
    files.write_json(os.path.join(output, "compare.json"), result)
    with files.published(os.path.join(output, "compare.html"), "w") as out:
        out.write(page(result, a, b, images))
    print_table(result)
    print(f"Wrote {output}/compare.html and compare.json")


PAIRS = {  # of queries and catalogue, by the folder of their evaluation
    "old": ("old_queries", "old_catalogue"),
    "new_on_old": ("new_queries", "old_catalogue"),
    "new": ("new_queries", "new_catalogue"),
}


def backward(stores, output, similarity="cosine"):
    """Evaluates the new model's queries against the old model's catalogue; see above.

    stores: {'old_queries', 'new_queries', 'old_catalogue', maybe 'new_catalogue': folder}. Writes
    an evaluation a pair and compare.json, compare.html; returns {figure: {'old', 'new_on_old',
    'new', 'share_of_gain'}}, the last two only with the new catalogue.
    """
    from retrieval import eval as evaluate

    sets = {name: store.read(folder) for name, folder in stores.items()}
    pairs = {name: pair for name, pair in PAIRS.items() if pair[1] in sets}
    figures = {}
    for name, (queries, catalogue) in pairs.items():
        q, c = sets[queries], sets[catalogue]
        try:
            result = evaluation.evaluate(q, c, similarity=similarity)
        except ValueError as error:
            raise ValueError(f"{stores[queries]} against {stores[catalogue]}: {error}") from None
        figures[name] = {
            "queries": stores[queries],
            "catalogue": stores[catalogue],
            **result.figures,
        }
        folder = os.path.join(output, name)
        os.makedirs(folder, exist_ok=True)
        prefix = os.path.join(folder, "embeddings")
        evaluate.write_stored(prefix, figures[name], result, q, c)
    rates = {
        f"recall@{k}": {name: f["recall@k"][k] for name, f in figures.items()}
        for k in figures["old"]["recall@k"]
    }
    rates["map@r"] = {name: f["map@r"] for name, f in figures.items()}
    for values in rates.values():
        if "new" in values:
            gain = values["new"] - values["old"]
            share = (values["new_on_old"] - values["old"]) / gain if gain > 0 else float("nan")
            values["share_of_gain"] = share
    pictures = {}
    for items in sets.values():
        if items.paths is not None:
            pictures |= dict(zip(items.ids.tolist(), items.paths.tolist(), strict=True))
    a, b = (os.path.join(output, name) for name in ("old", "new_on_old"))
    main([a, b], output, paths=pictures, backward=rates)
    return rates


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
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    test = result["mcnemar"]
    print(
        f"{result['num_queries']} queries in both; first results won {test['won']}, "
        f"lost {test['lost']}, McNemar p = {test['p_value']:.2g}."
    )


def run(argv=None):
    flags.DEFINE_string("output", ".", "Folder for compare.json and compare.html.")
    flags.DEFINE_string("model", None, "Model whose datasets hold the pictures.")
    names = ("old_queries", "new_queries", "old_catalogue", "new_catalogue")
    for name in names:
        what = name.replace("_", " model's ")
        flags.DEFINE_string(name, None, f"Store of the {what}, to tell backward compatibility.")
    flags.DEFINE_enum("similarity", "cosine", vectors.SIMILARITIES, "Of the stores' embeddings.")
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
            backward(stores, options.output, options.similarity)
            return
        if len(rest) != 2:
            raise ValueError("name two evaluations: python -m retrieval.compare A B")
        main(rest, options.output, options.model)
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
