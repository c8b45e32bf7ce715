"""The default recipe of models.ranker against what needs no training.

    python -m benchmarks.first_hour SET[=FLAGS] [SET=FLAGS …] [--seeds=5] [--results=FILE]

SET is a name for the table and FLAGS are the data's, as `shop=--dataset.name=folder
--dataset.base_path=shop`. Each image is embedded once by the frozen backbone; then one head is
trained per seed with no flag but the data's. On the test split each is compared, query by query,
with the best of three rankings that need no training: a color histogram, the frozen network, and
the frozen network with color. Intervals are of the difference, with products drawn again.
FILE holds a line of JSON for each run; the runs that it has are not made again.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="SET=FLAGS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", help="JSON lines: what is missing here is run and added")
    options = parser.parse_args()
    from trainer import quiet

    quiet.import_tensorflow()
    kept, shown = read(options.results), []
    for text in options.sets:
        name, _, flags = text.partition("=")
        for seed in range(options.seeds):
            found = [one for one in kept if (one["flags"], one["seed"]) == (flags, seed)]
            one = found[0] if found else {"flags": flags, **measure(shlex.split(flags), seed)}
            shown.append(one | {"set": name})
            if options.results and not found:
                with open(options.results, "a") as file:
                    file.write(json.dumps(shown[-1]) + "\n")
            print(shown[-1], file=sys.stderr, flush=True)
    print("\n".join(table(shown)))


def read(path):
    """The runs that a file holds."""
    if not path or not os.path.exists(path):
        return []
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def measure(flags, seed):
    """One run: recall@1 of it and of the baselines, and its difference to the best of them."""
    from benchmarks.ablation import parse
    from models.ranker import config
    from retrieval.evaluation import intervals

    before = config.to_dict()
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        place = [f"--trainer.experiment_base_dir={folder}", f"--trainer.random_seed={seed}"]
        hits, products, trained = run(parse([*flags, *place]), folder)
    config.restore(before)
    rates = {name: float(hit.mean()) for name, hit in hits.items()}
    own, recall = hits.pop("trained"), rates.pop("trained")
    best = max(hits, key=lambda name: rates[name])
    change = own.astype(float) - hits[best]
    drawn = intervals.bootstrap(change[:, None], products, seed=0)
    return {
        "seed": seed,
        "queries": len(own),
        "products": len(set(products)),
        "untrained": rates,
        "recall@1": recall,
        "against": best,
        "difference": float(change.mean()),
        "interval": [float(end) for end in intervals.percentiles(drawn)[0]],
        **trained,
    }


def run(model, folder):
    """Trains one head; returns ({ranking: bool [Q], whether the first result is right}, products
    [Q], what is known of the training)."""
    import tensorflow as tf

    from models.backbones import color
    from models.ranker.datasets import features_of
    from models.ranker.tables import test_tables
    from retrieval.embeddings.embedder import Embedder
    from trainer import checkpoints, experiment, loop, meters

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        last = loop.train(model, model.config)
    _, prefix = experiment.locate(model, (), "best")
    queries, catalogue = test_tables()
    q, c = (features_of(side).values[0] for side in (queries, catalogue))
    size = q.shape[1]
    found = {"color histogram": (q[:, size - color.SIZE :], c[:, size - color.SIZE :])}
    spec = {"features": tf.TensorSpec([None, size], tf.float32)}
    kinds = {"frozen": "features", "frozen with color": "untrained", "trained": "embeddings"}
    for name, key in kinds.items():
        model.config["evaluation.precision@k.feature_key"] = key
        with Embedder.of_experiment(model, prefix, spec=spec) as embedder:
            found[name] = tuple(embedder.run({"features": part}) for part in (q, c))
            if name == "frozen":
                weight = float(tf.train.load_variable(prefix, "head/color_weight"))
    hits = {name: first_is_right(*sides, queries, catalogue) for name, sides in found.items()}
    answerable = np.isin(queries.products, catalogue.products) & (hits["trained"] >= 0)
    hits = {name: hit[answerable] == 1 for name, hit in hits.items()}
    held = [p["recall@1"] for p in meters.read_metrics(f"{folder}/exp-ranker") if "examples" in p]
    known = {"step": checkpoints.step_of(prefix), "of": last, "color": round(weight, 2)}
    known["validation"] = max(held)
    return hits, queries.products[answerable].astype(str), known


def first_is_right(q, c, queries, catalogue):
    """int [Q]: 1 where the first result is of the query's product, 0 where not, -1 without answer.

    An image never finds itself.
    """
    from retrieval.metrics import rank_queries

    ids = {"query_ids": queries.ids.astype(str), "catalogue_ids": catalogue.ids.astype(str)}
    labels = queries.products.astype(str), catalogue.products.astype(str)
    ranking = rank_queries(q, labels[0], c, labels[1], ks=(1,), **ids)
    return np.where(ranking.answerable, ranking.first == 1, -1)


def table(runs):
    """Markdown: one row per set, and what the sets' mean differences average to."""
    names = ["color histogram", "frozen", "frozen with color"]
    lines = [
        f"| set | {' | '.join(names)} | trained | steps | difference to the best | 95% intervals |",
        "|---" * (len(names) + 5) + "|",
    ]
    sets = {}
    for one in runs:
        sets.setdefault(one["set"], []).append(one)
    means = {name: np.mean([one["difference"] for one in own]) for name, own in sets.items()}
    for name, own in sets.items():
        untrained = [_rate(own[0]["untrained"][n]) for n in names]
        recall = sorted(one["recall@1"] for one in own)
        trained = f"{_rate(np.mean(recall))} ({_rate(recall[0])} to {_rate(recall[-1])})"
        steps = ", ".join(str(one["step"]) for one in own)
        each = dict.fromkeys("{:+.3f} to {:+.3f}".format(*one["interval"]) for one in own)
        cells = [name, *untrained, trained, steps, f"{means[name]:+.3f}", "; ".join(each)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"mean over the sets: {np.mean(list(means.values())):+.3f}"]


def _rate(value):
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()
