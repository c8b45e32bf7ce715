"""Exact recall@k and MAP@R at the size of Stanford Online Products.

    python -m benchmarks.exact_eval [--rows=60502] [--part=both] [--rounds=1] [--peer]
        [--verify]

compares, on the same vectors and the same cores, within one run: the bare float32 matrix product,
this project's evaluation (recall@{1,10,100,1000}, MAP@R, MRR, mean rank) with either filter, FAISS
IndexFlatIP with the ranks read from its lists at k = 100 and k = 1000, and with --peer
pytorch-metric-learning's AccuracyCalculator (MAP@R and precision@1). --verify compares every query
with a full float64 evaluation. Vectors are drawn: products scattered about categories, pictures
about products.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

import faiss
import numpy as np

from retrieval import metrics
from retrieval.ranking import counting, kernels

KS = (1, 10, 100, 1000)


def draw(rows, dimensions, products, noise, seed=0):
    """Unit vectors float32 [rows, dimensions] and product codes; every product has two or more."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(products), 2)[:rows]
    labels = np.append(labels, random.integers(0, products, rows - len(labels)))
    random.shuffle(labels)
    categories = random.normal(size=(12, dimensions))
    centers = random.normal(size=(products, dimensions))
    centers += categories[random.integers(0, 12, products)]
    # Pictures of a product differ in how far they stray.
    spread = noise * np.exp(0.3 * random.normal(size=(rows, 1)))
    points = centers[labels] + spread * random.normal(size=(rows, dimensions))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), labels


def product(queries, catalogue):
    out = np.empty((1024, len(catalogue)), np.float32)
    for i in range(0, len(queries), 1024):
        part = queries[i : i + 1024]
        np.matmul(part, catalogue.T, out=out[: len(part)])


def ours(queries, labels, catalogue, catalogue_labels, filter):
    sets = (queries, labels)
    if catalogue is not queries:
        sets += (catalogue, catalogue_labels)
    ranking = metrics.rank_queries(*sets, ks=KS, precision_at=(1,), filter=filter)
    return metrics.summarize(ranking)


def by_lists(queries, labels, catalogue, catalogue_labels, k):
    """Recall from FAISS's lists of neighbors, without the query's own row."""
    index = faiss.IndexFlatIP(queries.shape[1])
    index.add(catalogue)
    same = catalogue is queries
    rows = index.search(queries, k + same)[1]
    found = catalogue_labels[rows] == labels[:, None]
    itself = (rows == np.arange(len(queries))[:, None]) & same
    place = np.cumsum(~itself, axis=1)
    first = np.where(found & ~itself, place, k + 1).min(1)
    answerable = np.bincount(catalogue_labels, minlength=labels.max() + 1)[labels] > same
    first = first[answerable]
    return {"recall@k": {n: float((first <= n).mean()) for n in KS if n <= k}}


def peer(points, labels):
    from benchmarks import peer

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/points.npy", points)
        np.save(f"{folder}/labels.npy", labels)
        script = os.path.join(os.path.dirname(__file__), "peer_accuracy.py")
        return json.loads(peer.run([script, folder]).splitlines()[-1])


def verify(points, labels):
    """Compares first rank and MAP@R of every query with sorting a float64 product."""
    rankings = {
        name: metrics.rank_queries(points, labels, precision_at=(1,), filter=name)
        for name in ("float32", "bfloat16")
    }
    wide = points.astype(np.float64)
    differ = dict.fromkeys(rankings, 0)
    for i in range(0, len(points), 512):
        scores = wide[i : i + 512] @ wide.T
        for row, q in zip(scores, range(i, i + 512), strict=False):
            same = labels == labels[q]
            row[q] = -np.inf
            same[q] = False
            if not same.any():
                for name, ranking in rankings.items():
                    differ[name] += int(ranking.first[q] != 0)
                continue
            ordered = np.sort(row[same])[::-1]
            row[same] = -np.inf
            above = np.array([np.count_nonzero(row > t) for t in ordered])
            rank = above + np.arange(1, len(ordered) + 1)
            precision = np.arange(1, len(rank) + 1) / rank
            ap = precision[rank <= len(rank)].sum() / len(rank)
            for name, ranking in rankings.items():
                off = abs(ap - ranking.average_precision[q]) > 1e-12
                differ[name] += int(off or rank[0] != ranking.first[q])
    for name, count in differ.items():
        print(
            f"verify: {name}: {count} of {len(points)} queries differ from a float64 evaluation; "
            f"{rankings[name].decided.sum()} were certified by float64"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60502)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--products", type=int, default=11316)
    parser.add_argument("--noise", type=float, default=2.0)
    parser.add_argument("--queries", type=int, default=8192, help="of the second, unsymmetric part")
    parser.add_argument("--part", choices=["both", "first", "second"], default="both")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    rows, count = options.rows, options.rows + options.queries
    points, labels = draw(count, options.dimensions, options.products, options.noise)
    queries, query_labels = points[rows:], labels[rows:]
    points, labels = points[:rows], labels[:rows]
    native = "with" if kernels.has_bfloat16() else "without"
    print(
        f"{options.rows} x {options.dimensions}, {counting.cores()} threads, "
        f"{native} bfloat16 units"
    )
    if options.verify:
        return verify(points, labels)
    faiss.omp_set_num_threads(counting.cores())
    parts = {
        "first": ("queries = catalogue", (points, labels, points, labels)),
        "second": (
            f"{options.queries} queries, not in the catalogue",
            (queries, query_labels, points, labels),
        ),
    }
    peak = None
    for part, (title, arguments) in parts.items():
        if options.part not in (part, "both"):
            continue
        print(f"\n{title}")
        kinds = {
            "ours": lambda a=arguments: ours(*a, "auto"),
            "ours in float32": lambda a=arguments: ours(*a, "float32"),
            "faiss k=100": lambda a=arguments: by_lists(*a, 100),
            "faiss k=1000": lambda a=arguments: by_lists(*a, 1000),
            "float32 product": lambda a=arguments: product(a[0], a[2]),
        }
        seconds, results, busy = {name: [] for name in kinds}, {}, {}
        for _ in range(options.rounds):
            for name, work in kinds.items():
                start, cpu = time.perf_counter(), time.process_time()
                results[name] = work()
                seconds[name].append(time.perf_counter() - start)
                busy[name] = time.process_time() - cpu
                if peak is None:  # ours comes first: later FAISS's lists would count
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if options.peer and arguments[0] is points:
            answer = peer(points, labels)
            results["pytorch-metric-learning"] = answer
            seconds["pytorch-metric-learning"] = [answer["seconds"]]
            busy["pytorch-metric-learning"] = answer["cpu"]
        base = statistics.median(seconds["ours"])
        for name, times in seconds.items():
            median = statistics.median(times)
            line = f"  {name:24s} {median:7.2f} s   {median / base:5.2f} x ours"
            if name in busy:  # processor time tells more on a machine that others use, too
                line += f"   cpu {busy[name]:7.2f} s {busy[name] / busy['ours']:5.2f} x"
            print(line)
        figures = results["ours"]
        print(f"  recall@k {figures['recall@k']}  MAP@R {figures['map@r']:.6f}")
        decided = figures["num_decided_in_float64"]
        print(f"  {decided} queries certified by float64; peak memory {peak:.2f} GiB")
        for name, result in results.items():
            for k, rate in (result or {}).get("recall@k", {}).items():
                if abs(rate - figures["recall@k"][int(k)]) > 1e-12:
                    print(f"  {name} differs: recall@{k} {rate}")


if __name__ == "__main__":
    main()
