"""Two evaluations of the same queries, compared query by query."""

import csv
import json
import os
import re

import numpy as np

from retrieval.evaluation import intervals


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


def compare(a, b, replicates=intervals.REPLICATES, seed=0):
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
    drawn = intervals.bootstrap(values[1] - values[0], products, replicates, seed)
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
            "p_value": intervals.mcnemar(int(won.sum()), int(lost.sum())),
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


def verdict(result) -> str:
    """What the comparison says of the first result."""
    figure, d = next(iter(result["difference"].items()))
    low, high = d["interval95"]
    if low <= 0 <= high:
        return f"No difference in {figure} that the queries could tell: the interval holds 0."
    better = "better" if low > 0 else "worse"
    return f"B is {better} in {figure}: the interval of the difference excludes 0."
