"""Approximate search: what the catalogue chooses and tunes, next to FAISS set by hand.

    python -m benchmarks.ann [--rows=1000000] [--dimensions=128] [--recall=0.95]

For every kind that --factory=auto can choose: recall@10, queries per second, seconds to build,
bytes per vector, at the effort that `tune` finds. Below each, the same factory in plain FAISS with
nprobe or efSearch set by hand to powers of two: the seconds of the two settings about our recall,
which are timed in turn with ours, interpolated to it. The ratio is the median of the turns. Vectors
are clustered."""

import argparse
import os
import tempfile
import time

import faiss
import numpy as np

from retrieval.catalogue import inverted_lists, neighbours
from retrieval.ranking import counting

BLOCK = 65536  # rows added at a time
TURNS = 9
ON_DISK = " on disk"


def draw(rows, dimensions, seed=0):
    """Float32 unit vectors about rows / 100 centres."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(max(1, rows // 100), dimensions)).astype(np.float32)
    points = centers[random.integers(0, len(centers), rows)]
    points += 0.7 * random.standard_normal((rows, dimensions), np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def timed(built, queries, truth, value):
    """(recall@10, seconds) of one pass."""
    start = time.perf_counter()
    rows = neighbours.search(built, queries, 10, "dot", neighbours.effort(built, value))[1]
    seconds = time.perf_counter() - start
    hits = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, truth, strict=True)])
    return float(hits), seconds


def in_turn(built, queries, truth, values, turns=TURNS):
    """Seconds [len(values), turns] of passes at each effort, one after the other in every turn."""
    return np.array([[timed(built, queries, truth, v)[1] for v in values] for _ in range(turns)]).T


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument(
        "--kinds", default="", help=f"FAISS factories, parted by ;, e.g. IVF64,SQ8{ON_DISK}"
    )
    options = parser.parse_args()
    faiss.omp_set_num_threads(counting.cores())
    everything = draw(options.rows + 2 * options.queries, options.dimensions)
    points = everything[: options.rows]
    held_out, queries = np.split(everything[options.rows :], 2)
    truth_held, truth = (neighbours.nearest(q, [points], 10, "dot")[1] for q in (held_out, queries))
    names = [name for name in options.kinds.split(";") if name]
    kinds = [(name.removesuffix(ON_DISK), name.endswith(ON_DISK)) for name in names]
    kinds = kinds or chosen(options.rows, options.dimensions)
    size = f"{options.rows} x {options.dimensions}"
    print(f"{size}, {counting.cores()} threads, recall asked for {options.recall}")
    print(
        f"{'kind':22s} {'effort':>7s} {'recall@10':>9s} {'queries/s':>10s} {'build s':>8s} "
        f"{'bytes':>6s}"
    )
    for factory, on_disk in kinds:
        with tempfile.TemporaryDirectory() as folder:
            line, effort, recall, built = measured(
                factory, on_disk, folder, points, held_out, truth_held, queries, truth, options
            )
            print(line, flush=True)
            if effort is None:
                continue
            efforts = [1, *2 ** np.arange(1, 10)]
            by_hand = [timed(built, queries, truth, v)[0] for v in efforts]
            enough = int(np.argmax(np.array(by_hand) >= recall))
            if by_hand[enough] < recall:
                continue
            less = max(0, enough - 1)
            share = (recall - by_hand[less]) / (by_hand[enough] - by_hand[less] or 1)
            ours, low, high = in_turn(
                built, queries, truth, (effort, efforts[less], efforts[enough])
            )
            theirs = low + share * (high - low)
            between = f"{efforts[less]}..{efforts[enough]}"
            line = f"{'  by hand':22s} {between:>7} {recall:9.3f}"
            print(f"{line}   ours is {np.median(theirs / ours):.2f} x", flush=True)


def chosen(rows, dimensions):
    """[(factory, on disk)] that auto chooses, from much memory to little, and for less recall."""
    wanted = [
        (4 * dimensions + 272, 0.95, None),
        (dimensions + 8, 0.95, None),
        (dimensions // 2 + 28, 0.85, None),
        (dimensions // 8 + 16, 0.4, None),
        (dimensions // 8 + 16, 0.95, 2**50),
        (dimensions // 2 + 8, 0.8, None),
    ]
    return [neighbours.choose(rows, dimensions, n * rows, r, disk)[:2] for n, r, disk in wanted]


def measured(factory, on_disk, folder, points, held_out, truth_held, queries, truth, options):
    """Builds, tunes and times one kind: (line to print, effort, recall, index)."""
    start = time.perf_counter()
    built = neighbours.make(factory, options.dimensions, "dot")
    if not built.is_trained:
        built.train(points[:: max(1, len(points) // 200_000)])
    blocks = (points[i : i + BLOCK] for i in range(0, len(points), BLOCK))
    if on_disk:
        built = inverted_lists.write(built, blocks, folder)
        taken = os.path.getsize(os.path.join(folder, inverted_lists.LISTS))
    else:
        for block in blocks:
            built.add(block)
    seconds = time.perf_counter() - start
    if not on_disk:
        path = os.path.join(folder, "index.faiss")
        faiss.write_index(built, path)
        taken = os.path.getsize(path)
    tuned = neighbours.tune(built, held_out, truth_held, options.recall, "dot", 10)
    effort = tuned["effort"]
    recall = timed(built, queries, truth, effort)[0]
    speed = len(queries) / np.median(in_turn(built, queries, truth, [effort]))
    name = factory + ON_DISK * on_disk
    line = f"{name:22s} {effort or '-':>7} {recall:9.3f} {speed:10.0f} {seconds:8.1f} "
    return line + f"{taken / len(points):6.0f}", effort, recall, built


if __name__ == "__main__":
    main()
