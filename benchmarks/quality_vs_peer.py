"""Recall and time of a head trained by this project and by pytorch-metric-learning.

    python -m benchmarks.quality_vs_peer --manifest=FOLDER/manifest.csv [--loss=multi_similarity]

Both sides train the same linear head (128 dimensions, L2-normalised) on the same cached features
of EfficientNet-Lite0, from the same weights, on the same batches, with the same loss and Adam; each
in a process of its own. A batch has, of each product, photos and a catalogue picture. What they
embed is compared by one evaluator: test photos against the catalogue, with 95% intervals from
whole products. Times are of the training steps alone.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import peer

LOSSES = ("supervised_contrastive", "multi_similarity", "triplet")


def prepare(manifest, image_size, products, photos, steps, seeds, folder):
    """Writes what both sides read: features, batches and first weights, a file for each seed."""
    import numpy as np
    import tensorflow as tf

    from metriclearn import pk_sampler
    from metriclearn.datasets import load
    from models import backbones
    from models.backbones import features

    table = load("manifest", manifest)
    backbone = backbones.load("pretrained:efficientnet_lite0")
    found = features.embed(backbone, table, image_size=image_size).values[0]
    catalogue = table.roles == "catalogue"
    sides = [(table.splits == "train", photos), (catalogue, 1)]
    for seed in range(seeds):
        # Both deal the same products: a sampler's choice hangs on their number and the seed alone.
        dealt = []
        for kind, count in sides:
            rows = np.flatnonzero(kind)
            sample = pk_sampler(table.labels[rows], products=products, images=count, seed=seed)
            with tf.Graph().as_default(), tf.compat.v1.Session() as session:
                step = tf.compat.v1.placeholder(tf.int64, [])
                run = session.make_callable(sample(step), [step])
                dealt.append([rows[run(i)].reshape(products, count) for i in range(steps)])
        batches = np.concatenate(dealt, 2).reshape(steps, -1)
        random = np.random.default_rng(seed)
        scale = np.sqrt(6 / (found.shape[1] + 128))
        np.savez(
            folder / f"{seed}.npz",
            features=found,
            labels=table.labels,
            batches=batches,
            weights=random.uniform(-scale, scale, (found.shape[1], 128)).astype(np.float32),
        )
    return table, catalogue, table.splits == "test"


def ours(path, loss, learning_rate):
    from trainer import quiet

    quiet.import_tensorflow()

    import numpy as np
    import tensorflow as tf

    import metriclearn

    v1 = tf.compat.v1
    functions = {
        "supervised_contrastive": metriclearn.LOSSES["supervised_contrastive"],
        "multi_similarity": metriclearn.LOSSES["multi_similarity"],
        "triplet": metriclearn.triplet_loss,
    }
    data = dict(np.load(path))
    with tf.Graph().as_default():
        features, labels = tf.constant(data["features"]), tf.constant(data["labels"])
        weights = v1.get_variable("weights", initializer=data["weights"])
        bias = v1.get_variable("bias", initializer=np.zeros(128, np.float32))

        def embed(x):
            return tf.nn.l2_normalize(tf.matmul(x, weights) + bias, 1)

        rows = v1.placeholder(tf.int64, [data["batches"].shape[1]])
        value = functions[loss](tf.gather(labels, rows), embed(tf.gather(features, rows)))
        update = v1.train.AdamOptimizer(learning_rate).minimize(value)
        config = v1.ConfigProto(intra_op_parallelism_threads=os.cpu_count())
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            step = session.make_callable([value, update], [rows])
            start = time.perf_counter()
            for batch in data["batches"]:
                last = step(batch)[0]
            seconds = time.perf_counter() - start
            np.save(path + ".ours.npy", session.run(embed(features)))
    print(json.dumps({"seconds": seconds, "loss": float(last)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", required=True, help="CSV of the Grocery Store data set")
    parser.add_argument("--loss", choices=LOSSES, default="supervised_contrastive")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--products", type=int, default=80, help="in a batch")
    parser.add_argument("--photos", type=int, default=3, help="of a product in a batch")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    o = parser.parse_args()

    import numpy as np

    from retrieval import evaluation
    from retrieval.metrics import rank_queries

    sides = {
        "ours": [sys.executable, "-m", "benchmarks.quality_vs_peer", "--worker"],
        "peer": [peer.python(), str(pathlib.Path(__file__).with_name("peer_quality.py"))],
    }
    rows = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        table, catalogue, test = prepare(
            o.manifest, o.image_size, o.products, o.photos, o.steps, o.seeds, folder
        )
        for seed in range(o.seeds):
            for name, command in sides.items():
                arguments = [str(folder / f"{seed}.npz"), o.loss, str(o.learning_rate)]
                done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE)
                said = json.loads(done.stdout.splitlines()[-1])
                embeddings = np.load(folder / f"{seed}.npz.{name}.npy")
                ranking = rank_queries(
                    embeddings[test], table.labels[test], embeddings[catalogue],
                    table.labels[catalogue],
                )  # fmt: skip
                hits = np.asarray(evaluation.per_query(ranking)["recall@1"], float)
                means = evaluation.bootstrap(hits[:, None], table.products[test])
                low, high = np.percentile(means, (2.5, 97.5))
                rows[name].append((hits.mean(), said["seconds"]))
                print(
                    f"seed {seed} {name:5} recall@1 {hits.mean():.3f} ({low:.3f}-{high:.3f})  "
                    f"last loss {said['loss']:.4f}  {said['seconds']:.1f} s",
                    flush=True,
                )
    rates, seconds = ({n: [r[i] for r in of] for n, of in rows.items()} for i in (0, 1))
    for name in sides:
        mean, spread = statistics.mean(rates[name]), max(rates[name]) - min(rates[name])
        print(f"{name:5} mean recall@1 {mean:.3f}, range over seeds {spread:.3f}")
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
    print(f"the peer takes {ratio:.2f} times our time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        ours(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
