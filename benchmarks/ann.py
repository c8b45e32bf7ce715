"""Approximate search: what the catalogue chooses and tunes, next to FAISS set by hand.

    python -m benchmarks.ann [--quick] [--rows=1000000] [--dimensions=128] [--recall=0.95]

For every kind that --factory=auto can choose, at the effort that `tune` finds: the speed over the
same factory in plain FAISS with nprobe or efSearch set by hand to powers of two. The seconds of the
two settings about our recall, which are timed by turns with ours, are interpolated to it. The note
gives recall@10, queries per second, seconds to build and bytes per vector. Vectors are clustered.
"""

import contextlib
import os
import tempfile
import time

import faiss
import numpy as np

from benchmarks import figures, timing
from retrieval.catalogue import inverted_lists, neighbours
from retrieval.ranking import counting

BLOCK = 65536  # rows added at a time
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


def in_turn(built, queries, truth, values, rounds):
    """Seconds [len(values), rounds] of passes at each effort, by turns."""
    passes = [lambda v=v: timed(built, queries, truth, v)[1] for v in values]
    return timing.alternate(passes, rounds, warm=0)


def measure(
    quick=False, rows=1_000_000, dimensions=128, queries=1000, recall=0.95, kinds="", rounds=9
):
    """`kinds`: FAISS factories, separated by ;, such as "IVF64,SQ8 on disk"."""
    if quick:
        rows, rounds = rows // 50, 5
    faiss.omp_set_num_threads(counting.cores())
    everything = draw(rows + 2 * queries, dimensions)
    points = everything[:rows]
    held_out, asked = np.split(everything[rows:], 2)
    scores = neighbours.nearest(held_out, [points], 10, "dot")[0]
    truth = neighbours.nearest(asked, [points], 10, "dot")[1]

    def exact(rows):
        return np.einsum("qd,qkd->qk", held_out, points[rows])

    names = [name for name in kinds.split(";") if name]
    pairs = [(name.removesuffix(ON_DISK), name.endswith(ON_DISK)) for name in names]
    for factory, on_disk in dict.fromkeys(pairs or chosen(rows, dimensions)):
        with tempfile.TemporaryDirectory() as folder:
            built, note = _built(factory, on_disk, folder, points)
            tuned = neighbours.tune(built, held_out, scores, exact, recall, "dot", 10)
            name = f"search of {factory}{ON_DISK * on_disk}, times as fast as FAISS set by hand"
            yield _beside_hand(name, built, asked, truth, tuned["effort"], rounds, note)


def _beside_hand(name, built, queries, truth, effort, rounds, note):
    recall = timed(built, queries, truth, effort)[0]
    if effort is None:
        seconds = in_turn(built, queries, truth, [effort], rounds)
        note += f", recall@10 {recall:.3f}, {len(queries) / np.median(seconds):.0f} queries/s"
        return figures.Figure(name, None, note=f"nothing to set; {note}")
    efforts = [1, *(2 ** np.arange(1, 10)).tolist()]
    by_hand = [timed(built, queries, truth, v)[0] for v in efforts]
    enough = int(np.argmax(np.array(by_hand) >= recall))
    if by_hand[enough] < recall:
        return figures.Figure(name, None, note=f"by hand it stays below {recall:.3f}; {note}")
    less = max(0, enough - 1)
    share = (recall - by_hand[less]) / (by_hand[enough] - by_hand[less] or 1)
    ours, low, high = in_turn(
        built, queries, truth, (effort, efforts[less], efforts[enough]), rounds
    )
    note += f", effort {effort}, recall@10 {recall:.3f}"
    note += f", {len(queries) / np.median(ours):.0f} queries/s"
    return figures.figure(name, (low + share * (high - low)) / ours, note=note)


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
    kinds = []
    for memory, recall, disk in wanted:
        with contextlib.suppress(ValueError):  # small catalogues need more bytes per vector
            kinds.append(neighbours.choose(rows, dimensions, memory * rows, recall, disk)[:2])
    return kinds


def _built(factory, on_disk, folder, points):
    """(index, its size and the time it took)."""
    start = time.perf_counter()
    built = neighbours.make(factory, points.shape[1], "dot")
    if not built.is_trained:
        built.train(points[:: max(1, len(points) // 200_000)])
    blocks = (points[i : i + BLOCK] for i in range(0, len(points), BLOCK))
    if on_disk:
        built = inverted_lists.write(built, blocks, folder)
        path = os.path.join(folder, inverted_lists.LISTS)
    else:
        for block in blocks:
            built.add(block)
        path = os.path.join(folder, "index.faiss")
    seconds = time.perf_counter() - start
    if not on_disk:
        faiss.write_index(built, path)
    size = os.path.getsize(path) / len(points)
    return built, f"{len(points):,} vectors, built in {seconds:.1f} s, {size:.0f} bytes each"


if __name__ == "__main__":
    figures.program(measure)
