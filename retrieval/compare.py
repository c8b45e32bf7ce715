"""Compares two evaluations on the same queries: is B better than A, and where?

    python -m retrieval.compare A B [--output=DIR] [--model=models.simple]

A and B are `…-eval.json` files of `retrieval.eval`, or folders that hold one (the newest step of
several). Differences are paired by query id, with 95% intervals from a bootstrap over products and
McNemar's exact test on the first result. Writes compare.json and compare.html; pictures are those
of ids that are image files, or of the datasets of --model.

Whether a new model's queries work against an old model's catalogue (backward compatibility) is an
evaluation of its own: retrieval.eval --queries=NEW.npy … --catalogue=OLD.npy …
"""

import csv
import json
import math
import os
import re
import sys

import numpy as np
from absl import app, flags

from retrieval import evaluation, files, report
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


def main(paths, output, model=None):
    a, b = (load(path) for path in paths)
    result = compare(a, b)
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
        images = report.files_of({name: name for name in shown | items})
    files.write_json(os.path.join(output, "compare.json"), result)
    with files.published(os.path.join(output, "compare.html"), "w") as out:
        out.write(page(result, a, b, images))
    print_table(result)
    print(f"Wrote {output}/compare.html and compare.json")


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
    app.define_help_flags()
    try:
        rest = flags.FLAGS(sys.argv if argv is None else argv)[1:]
        if len(rest) != 2:
            raise ValueError("name two evaluations: python -m retrieval.compare A B")
        main(rest, flags.FLAGS.output, flags.FLAGS.model)
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
