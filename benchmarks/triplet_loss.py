"""Batch-hard triplet loss, forward and backward: against one matrix product and against the peer.

Every figure of a row comes from the same run, in turns: one product `E E^T` in TensorFlow, one step
of ours, one step of pytorch-metric-learning (BatchHardMiner + TripletMarginLoss), and again.
Medians.

    python -m benchmarks.triplet_loss                  # all tables, about four minutes on two cores
    python -m benchmarks.triplet_loss --only memory    # sizes | miners | memory
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from benchmarks import peer
from metriclearn import triplet_loss

v1 = tf.compat.v1
THREADS = os.cpu_count()


def embeddings_of(batch, dimension):
    return np.random.default_rng(0).standard_normal((batch, dimension), np.float32)


def timed(function, repeats=1):
    """Seconds of one call. A turn of less than some milliseconds would time waking up."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def medians(functions, rounds):
    """Median seconds of each function, called in turns after one round of warming up."""
    seconds = [[f() for f in functions] for _ in range(rounds + 1)]
    return np.median(seconds[1:], axis=0)


def session(graph):
    return v1.Session(
        graph=graph,
        config=v1.ConfigProto(
            intra_op_parallelism_threads=THREADS, inter_op_parallelism_threads=THREADS
        ),
    )


def steps(batch, dimension, options):
    """A list of functions that run one step each: E E^T, then the loss with each of `options`."""
    graph = tf.Graph()
    with graph.as_default():
        embeddings = v1.get_variable("e", initializer=embeddings_of(batch, dimension))
        labels = tf.constant(np.arange(batch) // 4)
        # One element is fetched, so that nothing but the product is timed and nothing is pruned.
        fetches = [tf.matmul(embeddings, embeddings, transpose_b=True)[0, 0]]
        for option in options:
            loss = triplet_loss(labels, embeddings, **option)
            fetches.append([loss, tf.convert_to_tensor(tf.gradients(loss, embeddings)[0])[0, 0]])
        opened = session(graph)
        opened.run(v1.global_variables_initializer())
        return [opened.make_callable(f) for f in fetches]


class Peer:
    """The peer's process: `peer(B, D)` runs one step there and returns what it measured."""

    def __init__(self):
        script = pathlib.Path(__file__).with_name("peer_triplet.py")
        self.process = subprocess.Popen(
            [peer.python(), str(script), str(THREADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, batch, dimension, repeats=1):
        print(batch, dimension, repeats, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def sizes():
    print("\nbatch-hard, forward + backward, float32")
    print("    B    D   product ms   ours ms   ours/product   peer ms   peer/ours")
    other = Peer()
    for batch, dimension, rounds, repeats in (
        (512, 128, 15, 20),
        (2048, 512, 9, 2),
        (4096, 512, 5, 1),
        (8192, 512, 3, 1),
    ):
        product, ours = steps(batch, dimension, [{}])
        size = batch, dimension, repeats
        functions = [
            lambda f=product, n=repeats: timed(f, n),
            lambda f=ours, n=repeats: timed(f, n),
            lambda size=size: other(*size)["seconds"],
        ]
        p, o, t = 1e3 * medians(functions, rounds)
        row = f"{batch:5} {dimension:4} {p:12.2f} {o:9.2f} {o / p:14.2f} {t:9.1f} {t / o:11.1f}"
        print(row, flush=True)


def miners():
    options = {
        "batch_hard": {},
        "batch_hard, bfloat16": {"mining_dtype": "bfloat16"},
        "semi_hard": {"miner": "semi_hard"},
        "easy_positive": {"miner": "easy_positive"},
        "top_k_hard": {"miner": "top_k_hard"},
        "distance_weighted": {"miner": "distance_weighted"},
    }
    batch, dimension = 4096, 512
    functions = steps(batch, dimension, options.values())
    seconds = medians([lambda f=f: timed(f) for f in functions], 5)
    print(f"\nminers, forward + backward, float32, B={batch}, D={dimension}")
    print("                            ms   times batch_hard")
    for name, s in zip(["one product", *options], seconds, strict=True):
        print(f"{name:22} {1e3 * s:7.1f} {s / seconds[1]:18.2f}")


def memory():
    print("\nmemory beyond the embeddings, D=512 (peak resident, one step, process of its own)")
    for batch, miner in (8192, "batch_hard"), (32768, "batch_hard"), (32768, "semi_hard"):
        arguments = [sys.executable, "-m", "benchmarks.triplet_loss", "--peak", str(batch), miner]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
        print(f"ours  B={batch:5} {miner:12} {float(done.stdout):8.0f} MiB")
    print(f"peer  B= 8192 batch_hard   {Peer()(8192, 512)['grown_mb']:8.0f} MiB")


def peak(batch, miner):
    """MiB that one step adds to the process's resident memory at its highest."""
    graph = tf.Graph()
    with graph.as_default():
        embeddings = v1.placeholder(tf.float32, [None, 512])
        kept = v1.Variable(embeddings, validate_shape=False, trainable=False, use_resource=True)
        labels = tf.range(tf.shape(kept)[0]) // 4
        loss = triplet_loss(labels, kept, miner=miner)
        gradient = tf.convert_to_tensor(tf.gradients(loss, kept)[0])[0, 0]
        opened = session(graph)
        for size in 256, batch:  # the small one makes threads, caches and code resident
            opened.run(kept.initializer, {embeddings: embeddings_of(size, 512)})
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
            before = status("VmRSS")
            opened.run([loss, gradient])
        return (status("VmHWM") - before) / 1024


def status(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["sizes", "miners", "memory"])
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(int(arguments.peak[0]), arguments.peak[1]))
    else:
        for table in sizes, miners, memory:
            if arguments.only in (None, table.__name__):
                table()
