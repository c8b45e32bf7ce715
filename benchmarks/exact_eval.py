"""Exact recall@k and MAP@R at the size of Stanford Online Products.

    python -m benchmarks.exact_eval [--quick] [--rows=60502] [--rounds=1] [--peer] [--verify]

compares, on the same vectors and the same cores, within one run: the bare float32 matrix product,
this project's evaluation (recall@{1,10,100,1000}, MAP@R, MRR, mean rank) with the filter that it
chooses and in float32, FAISS
IndexFlatIP with the ranks read from its lists at k = 100 and k = 1000, and with --peer
pytorch-metric-learning's AccuracyCalculator (MAP@R and precision@1). --verify compares every query
with a full float64 evaluation. Vectors are random: products scattered about categories, images
about products.
"""

import json
import tempfile
import time

import faiss
import numpy as np

from benchmarks import figures, timing
from benchmarks import peer as peers
from retrieval import metrics
from retrieval.ranking import counting, kernels

KS = (1, 10, 100, 1000)
AT_100, AT_1000, PRODUCT, OTHERS = figures.REACH["exact_eval"]


def draw(rows, dimensions, products, noise, seed=0):
    """Unit vectors float32 [rows, dimensions] and product codes; every product has two or more."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(products), 2)[:rows]
    labels = np.append(labels, random.integers(0, products, rows - len(labels)))
    random.shuffle(labels)
    categories = random.normal(size=(12, dimensions))
    centers = random.normal(size=(products, dimensions))
    centers += categories[random.integers(0, 12, products)]
    # Images of a product differ in how far they stray.
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


def by_peer(points, labels):
    """The peer's own answer: {'seconds', 'recall@k', 'map@r'}."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/points.npy", points)
        np.save(f"{folder}/labels.npy", labels)
        return json.loads(peers.run([peers.script("peer_accuracy.py"), folder]).splitlines()[-1])


def verified(points, labels):
    """Compares first rank and MAP@R of every query with sorting a float64 product."""
    rankings = {
        name: metrics.rank_queries(points, labels, precision_at=(1,), filter=name)
        for name in kernels.FILTERS[1:]
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
        note = f"of {len(points)}; {rankings[name].decided.sum()} were decided in float64"
        row = f"queries that differ from a float64 evaluation, {name} filter"
        yield figures.Figure(row, int(count), unit="queries", note=note)


def measure(
    quick=False, rows=60502, dimensions=512, products=11316, noise=2.0, queries=8192, rounds=1,
    peer=False, verify=False,
):  # fmt: skip
    if quick:
        rows, products, queries, rounds = rows // 4, products // 4, queries // 4, 2
    points, labels = draw(rows + queries, dimensions, products, noise)
    others, points = (points[rows:], labels[rows:]), points[:rows]
    labels = labels[:rows]
    if verify:
        yield from verified(points, labels)
        return
    faiss.omp_set_num_threads(counting.cores())
    seconds, results = compared((points, labels, points, labels), rounds)
    mine = seconds["ours"]
    note = f"{rows:,} x {dimensions}, {results['filter']} filter; {np.median(mine):.2f} s"
    yield figures.figure(AT_100, seconds["faiss k=100"] / mine, note=note)
    yield figures.figure(AT_1000, seconds["faiss k=1000"] / mine)
    yield figures.figure(PRODUCT, seconds["product"] / mine)
    yield figures.figure(
        f"exact recall@k, {results['filter']} over float32 filter",
        seconds["ours in float32"] / mine,
    )
    if peer:
        answer = by_peer(points, labels)
        _check("pytorch-metric-learning", answer, results)
        row = "exact recall@k and MAP@R, times as fast as pytorch-metric-learning"
        yield figures.figure(row, answer["seconds"] / mine)
    seconds, _ = compared((*others, points, labels), rounds)
    note = f"{queries:,} queries in {rows:,} items"
    yield figures.figure(OTHERS, seconds["faiss k=100"] / seconds["ours"], note=note)


def compared(sets, rounds):
    """({kind: seconds of each round}, what ours found), after checking that all agree."""
    results = {}
    kinds = {
        "ours": lambda: ours(*sets, "auto"),
        "ours in float32": lambda: ours(*sets, "float32"),
        "faiss k=100": lambda: by_lists(*sets, 100),
        "faiss k=1000": lambda: by_lists(*sets, 1000),
        "product": lambda: product(sets[0], sets[2]),
    }

    def timed(name):
        start = time.perf_counter()
        results[name] = kinds[name]()
        return time.perf_counter() - start

    turns = [lambda n=name: timed(n) for name in kinds]
    seconds = timing.alternate(turns, rounds, warm=0)
    for name, result in results.items():
        _check(name, result, results["ours"])
    return dict(zip(kinds, seconds, strict=True)), results["ours"]


def _check(name, result, found):
    for k, rate in (result or {}).get("recall@k", {}).items():
        if abs(rate - found["recall@k"][int(k)]) > 1e-12:
            raise ValueError(f"{name} differs: recall@{k} {rate}")


if __name__ == "__main__":
    figures.program(measure)
