"""Batch-hard triplet loss, forward and backward: against one matrix product and against the peer.

Every figure of a size comes from the same run, by turns: one product `E E^T` in TensorFlow, one
step of ours, one step of pytorch-metric-learning (BatchHardMiner + TripletMarginLoss).

    python -m benchmarks.triplet_loss [--quick]
"""

import contextlib
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from benchmarks import figures, peer, steps, timing
from metriclearn import triplet_loss

v1 = tf.compat.v1
THREADS = os.cpu_count()
CONFIG = v1.ConfigProto(intra_op_parallelism_threads=THREADS, inter_op_parallelism_threads=THREADS)
# B, D, rounds, repeats within a round: a turn of some milliseconds would time waking up.
SIZES = ((512, 128, 15, 20), (2048, 512, 9, 2), (4096, 512, 5, 1), (8192, 512, 3, 1))
MINERS = {
    "batch_hard, mining_dtype bfloat16": {"mining_dtype": "bfloat16"},
    "semi-hard": {"miner": "semi_hard"},
    "easy_positive": {"miner": "easy_positive"},
    "top_k_hard": {"miner": "top_k_hard"},
    "distance_weighted": {"miner": "distance_weighted"},
}


def measure(quick=False):
    with contextlib.ExitStack() as stack:
        other = peer.installed()
        if other:
            command = [other, peer.script("peer_triplet.py"), str(THREADS)]
            other = stack.enter_context(timing.Worker(command))
        for size in SIZES:
            yield from _size(*size, quick, other)
        yield from _miners(quick)
        if not quick:
            yield from _memory(other)


def _size(batch, dimension, rounds, repeats, quick, other):
    size = f"B={batch} D={dimension}"
    over = f"batch-hard, times as fast as pytorch-metric-learning, {size}"
    with steps.mining(batch, dimension, [{}], CONFIG) as functions:
        turns = [lambda f=f: timing.seconds(f, repeats) for f in functions]
        if other:
            turns.append(lambda: other(f"{batch} {dimension} {repeats}"))
        seconds = timing.alternate(turns, -(-rounds // 2) if quick else rounds)
    milliseconds = (1e3 * np.median(seconds, 1)).tolist()
    note = "product {:.1f} ms, ours {:.1f} ms".format(*milliseconds)
    yield figures.figure(f"batch-hard over one product, {size}", seconds[1] / seconds[0], note=note)
    if other:
        note = f"peer {milliseconds[2]:.0f} ms"
        yield figures.figure(over, seconds[2] / seconds[1], note=note)
    else:
        yield figures.Figure(over, None, note=peer.MISSING)


def _miners(quick, batch=4096, dimension=512):
    options = dict(list(MINERS.items())[:2]) if quick else MINERS
    with steps.mining(batch, dimension, [{}, *options.values()], CONFIG) as functions:
        turns = [lambda f=f: timing.seconds(f) for f in functions]
        _, batch_hard, *others = timing.alternate(turns, 3 if quick else 5)
    for name, seconds in zip(options, others, strict=True):
        row = f"{name} over batch-hard, B={batch} D={dimension}"
        yield figures.figure(row, seconds / batch_hard)


def _memory(other):
    """The peak beyond the embeddings of one step in a process of its own, D=512."""
    for batch, miner in (8192, "batch_hard"), (32768, "batch_hard"), (32768, "semi_hard"):
        arguments = [sys.executable, "-m", "benchmarks.triplet_loss", "--peak", str(batch), miner]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
        name = f"memory of a step beyond the embeddings, {miner}, B={batch} D=512"
        yield figures.figure(name, float(done.stdout), "MiB")
    name = "memory of a step beyond the embeddings, pytorch-metric-learning, B=8192 D=512"
    if other:
        other("256 512 0")  # makes threads and code resident
        yield figures.figure(name, other("8192 512 0"), "MiB")
    else:
        yield figures.Figure(name, None, note=peer.MISSING)


def peak(batch, miner):
    """MiB that one step adds to the process's resident memory at its highest."""
    graph = tf.Graph()
    with graph.as_default():
        embeddings = v1.placeholder(tf.float32, [None, 512])
        kept = v1.Variable(embeddings, validate_shape=False, trainable=False, use_resource=True)
        labels = tf.range(tf.shape(kept)[0]) // 4
        loss = triplet_loss(labels, kept, miner=miner)
        gradient = tf.convert_to_tensor(tf.gradients(loss, kept)[0])[0, 0]
        with v1.Session(config=CONFIG) as opened:
            for size in 256, batch:  # the small one makes threads, caches and code resident
                values = np.random.default_rng(0).standard_normal((size, 512), np.float32)
                opened.run(kept.initializer, {embeddings: values})
                grown = timing.grown(lambda: opened.run([loss, gradient]))
            return grown


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak(int(sys.argv[2]), sys.argv[3]))
    else:
        figures.program(measure)
