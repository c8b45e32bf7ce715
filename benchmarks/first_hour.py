"""The default recipe of models.ranker against what needs no training.

    python -m benchmarks.first_hour SET[=FLAGS] [SET=FLAGS …] [--seeds=5] [--json=first_hour.json]

SET is a name for the table and FLAGS are the data's, as `shop=--dataset.name=folder
--dataset.base_path=shop`. Each image is embedded once by the frozen backbone; then one head is
trained per seed with no flag but the data's. On the test split each is compared, query by query,
with the best of three rankings that need no training: a color histogram, the frozen network, and
the frozen network with color. Intervals are of the difference, with products drawn again.
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
    parser.add_argument("--json", help="write every figure here")
    options = parser.parse_args()
    from trainer import quiet

    quiet.import_tensorflow()
    results = {}
    for text in options.sets:
        name, _, flags = text.partition("=")
        results[name] = measure(shlex.split(flags), options.seeds)
        print("\n".join(table({name: results[name]})), flush=True)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(results, file, indent=1)
    print("\n".join(table(results)))


def measure(flags, seeds):
    """{baseline: recall@1}, and per seed recall@1 and its difference to the best baseline."""
    from benchmarks.ablation import parse
    from models.ranker import config
    from retrieval.evaluation import intervals

    before, runs, correct = config.to_dict(), [], {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
            place = [f"--trainer.experiment_base_dir={folder}", f"--trainer.random_seed={seed}"]
            model = parse([*flags, *place])
            hits, products, trained = run(model, folder)
        config.restore(before)
        own = hits.pop("trained")
        correct = correct or {name: float(hit.mean()) for name, hit in hits.items()}
        best = max(hits, key=lambda name: hits[name].mean())
        change = own.astype(float) - hits[best]
        drawn = intervals.bootstrap(change[:, None], products, seed=0)
        low, high = intervals.percentiles(drawn)[0]
        runs.append(
            {
                "seed": seed,
                "recall@1": float(own.mean()),
                "against": best,
                "difference": float(change.mean()),
                "interval": [low, high],
                **trained,
            }
        )
        print(f"  seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
    return {"queries": len(own), "products": len(set(products)), "untrained": correct, "runs": runs}


def run(model, folder):
    """Trains one head; returns ({ranking: bool [Q], whether the first result is right}, products
    [Q], what is known of the training)."""
    import tensorflow as tf

    from models.backbones import color
    from models.ranker.tables import test_tables
    from retrieval.embeddings.embedder import Embedder
    from trainer import checkpoints, experiment, loop

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        last = loop.train(model, model.config)
    _, prefix = experiment.locate(model, (), "best")
    queries, catalogue = test_tables()
    q, c = features_of(queries), features_of(catalogue)
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
    known = {"step": checkpoints.step_of(prefix), "of": last, "color": round(weight, 2)}
    return hits, queries.products[answerable].astype(str), known


def features_of(table):
    """Cached features of a test table, with the colors; each image is embedded once."""
    from models.backbones import features
    from models.ranker import config
    from models.ranker.datasets import image_options, load_backbone

    options = image_options(table)
    backbone = load_backbone(config["model.hub_address"])
    size = {"image_size": options["image_size"], "with_color": True}
    recipe = {"crop": options["crop"], "recipe": "boxes" if options["crop"] else ""}
    return features.embed(backbone, table, **size, **recipe).values[0]


def first_is_right(q, c, queries, catalogue):
    """int [Q]: 1 where the first result is of the query's product, 0 where not, -1 without answer.

    An image never finds itself.
    """
    from retrieval.metrics import rank_queries

    ids = {"query_ids": queries.ids.astype(str), "catalogue_ids": catalogue.ids.astype(str)}
    labels = queries.products.astype(str), catalogue.products.astype(str)
    ranking = rank_queries(q, labels[0], c, labels[1], ks=(1,), **ids)
    return np.where(ranking.answerable, ranking.first == 1, -1)


def table(results):
    """Markdown: one row per set and seed."""
    names = ["color histogram", "frozen", "frozen with color"]
    lines = [
        f"| set | {' | '.join(names)} | seed | trained | step | difference to the best, 95% |",
        "|---" * (len(names) + 5) + "|",
    ]
    for name, found in results.items():
        untrained = " | ".join(_rate(found["untrained"][n]) for n in names)
        for i, one in enumerate(found["runs"]):
            left = f"{name} | {untrained}" if i == 0 else " | " * len(names)
            change = f"{one['difference']:+.3f} ({one['interval'][0]:+.3f} to "
            change += f"{one['interval'][1]:+.3f})"
            own = f"{one['seed']} | {_rate(one['recall@1'])} | {one['step']} of {one['of']}"
            lines.append(f"| {left} | {own} | {change} |")
    return lines


def _rate(value):
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()
