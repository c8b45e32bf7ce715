"""Approximate search: what `retrieval.index` chooses and tunes, next to FAISS set by hand.

    python -m benchmarks.ann [--rows=1000000] [--dimensions=128] [--recall=0.95]

For every kind that --index=auto can choose: recall@10, queries a second, seconds to build, bytes a
vector, at the effort that `tune` finds. Below each, the same factory in plain FAISS over a grid of
nprobe or efSearch set by hand: its quickest point at no less recall. Vectors are clustered.
"""

import argparse
import time

import faiss
import numpy as np

from retrieval import exact, search


def draw(rows, dimensions, seed=0):
    """Float32 unit vectors about rows / 100 centres."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(max(1, rows // 100), dimensions)).astype(np.float32)
    points = centers[random.integers(0, len(centers), rows)]
    points += 0.7 * random.standard_normal((rows, dimensions), np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def timed(built, queries, truth, value, repeats=3):
    """(recall@10, queries a second), the median of a few passes."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows = search.search(built, queries, 10, "dot", search.effort(built, value))[1]
        seconds.append(time.perf_counter() - start)
    hits = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, truth, strict=True)])
    return float(hits), len(queries) / float(np.median(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--kinds", default="", help="FAISS factories, parted by ;")
    options = parser.parse_args()
    faiss.omp_set_num_threads(exact.cores())
    everything = draw(options.rows + 2 * options.queries, options.dimensions)
    points = everything[: options.rows]
    held_out, queries = np.split(everything[options.rows :], 2)
    flat = search.flat(points, "dot")
    truth_held, truth = (search.search(flat, q, 10, "dot")[1] for q in (held_out, queries))
    del flat
    # Memory for everything, for eight bits a dimension, and for four.
    sizes = (4 * options.dimensions + 272, options.dimensions + 8, options.dimensions // 2 + 8)
    chosen = [
        search.choose(options.rows, options.dimensions, size * options.rows)[0] for size in sizes
    ]
    print(f"{options.rows} x {options.dimensions}, {exact.cores()} threads, auto chooses {chosen}")
    print(
        f"{'kind':22s} {'effort':>7s} {'recall@10':>9s} {'queries/s':>10s} {'build s':>8s} "
        f"{'bytes':>6s}"
    )
    for factory in options.kinds.split(";") if options.kinds else dict.fromkeys(chosen):
        start = time.perf_counter()
        built = search.make(factory, options.dimensions, "dot")
        if not built.is_trained:
            built.train(points[:: max(1, len(points) // 200_000)])
        built.add(points)
        seconds = time.perf_counter() - start
        tuned = search.tune(built, held_out, truth_held, options.recall, "dot", 10)
        recall, speed = timed(built, queries, truth, tuned["effort"])
        per_vector = len(faiss.serialize_index(built)) / options.rows
        print(
            f"{factory:22s} {tuned['effort'] or '-':>7} {recall:9.3f} {speed:10.0f} {seconds:8.1f} "
            f"{per_vector:6.0f}",
            flush=True,
        )
        if tuned["effort"] is None:
            continue
        by_hand = [(value, *timed(built, queries, truth, value)) for value in 2 ** np.arange(11)]
        equal = [point for point in by_hand if point[1] >= recall - 0.002]
        if equal:
            value, hits, rate = max(equal, key=lambda point: point[2])
            line = f"{'  by hand':22s} {value:>7} {hits:9.3f} {rate:10.0f}"
            print(f"{line}   ours is {speed / rate:.2f} x")


if __name__ == "__main__":
    main()
