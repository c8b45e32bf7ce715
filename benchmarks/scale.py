"""An index in parts: what its steps cost, and what they would cost for 100 million items and more.

    python -m benchmarks.scale [--rows=1000000,4000000] [--dimensions=64] [--lists=4096]

builds every index by `index train`, `add --part` and `merge` in processes of their own, with
--memory=0.5, over clustered vectors. --lists gives all sizes as many lists, since with those that
`train` chooses for more items it takes long. Measured per step: core-seconds (processor time,
which other programs on the machine do not change), and the largest anonymous memory, which leaves
out files that the system maps and can drop. Then the index is searched, one query at a time on one
core. --figures=FILE keeps what was measured, so that each size can have a run of its own.

The model below it takes the costs that grow with the work: training with sample x lists x
dimensions, adding with items x lists x dimensions, a search with lists x dimensions and with the
bytes of codes that it reads. The share of lists that a search needs for its recall is extrapolated
from the two sizes by a power law. So costs for --modeled dimensions follow from those measured with
others. What is printed of 100 million items and more is modeled, not measured.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from retrieval.catalogue import neighbours
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings import store
from trainer import files

PARTS = 4
QUERIES = 300
MEMORY = 2**29
BLOCK = 250_000

STEP = """
import json, resource, sys, threading, time
from retrieval.catalogue import parts
most, done = [0], threading.Event()
def watch():
    while not done.wait(0.02):
        lines = open("/proc/self/status").read().split("RssAnon:")
        most[0] = max(most[0], int(lines[1].split()[0]) * 1024)
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
exec(sys.argv[1])
done.set()
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, most[0], time.perf_counter() - start]))
"""


def draw(rows, dimensions, seed):
    """Yields float32 unit vectors about 10,000 centers, block by block."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(10_000, dimensions)).astype(np.float32)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        points = centers[random.integers(0, len(centers), count)]
        points += 0.7 * random.standard_normal((count, dimensions), np.float32)
        yield points / np.linalg.norm(points, axis=1, keepdims=True)


def write(folder, rows, dimensions, seed=1):
    """A store of such vectors, with ids as long as those of a shop."""
    os.makedirs(folder)
    manifest, start = store.begin(folder, {"checkpoint_sha256": "w"}), 0
    for points in draw(rows, dimensions, seed):
        ids = np.char.add("shop/item-", np.arange(start, start + len(points)).astype(str))
        texts = np.full(len(points), "x")
        store.append(folder, manifest, store.Embedded(points, ids, texts, texts), 1)
        start += len(points)
    store.finish(folder, manifest)


def step(code):
    """[core-seconds, bytes of anonymous memory, seconds] of one step in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, code], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measured(folder, rows, dimensions, factory):
    """The figures of one kind, as a dict."""
    source, index = f"{folder}/store-{rows}-{dimensions}", f"{folder}/index"
    if not os.path.exists(source):
        write(source, rows, dimensions)
        write(f"{source}-queries", QUERIES, dimensions, seed=2)
    how = f"memory={MEMORY}, queries={source + '-queries'!r}, recall=.95"
    figures = {"rows": rows, "dimensions": dimensions, "factory": factory, "parts": PARTS}
    figures["train"] = step(f"parts.train({source!r}, {index!r}, {factory!r}, {how})")
    adding = [
        step(f"parts.add({source!r}, {index!r}, {n}, {PARTS}, memory={MEMORY})")
        for n in range(PARTS)
    ]
    figures["add"] = [*(float(max(each)) for each in zip(*adding, strict=True))]
    figures["add"][0] = sum(each[0] for each in adding)
    figures["merge"] = step(f"parts.merge({index!r})")
    with Catalogue.open(index) as catalogue:
        queries = store.read(f"{source}-queries").embeddings
        truth = neighbours.nearest(queries, store.arrays(source), 10)[1]
        found = catalogue.find(queries, 10)
        import faiss

        faiss.omp_set_num_threads(1)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        for query in queries:
            catalogue.find(query[None], 10)
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - start
        faiss.omp_set_num_threads(os.cpu_count())
        # Rows of a merged index are those of the store.
        hits = [len(np.intersect1d(a, b)) / 10 for a, b in zip(found.rows, truth, strict=True)]
        kind = neighbours.core(catalogue.index)
        figures |= {
            "recall": float(np.mean(hits)),
            "ms": 1000 * seconds / len(queries),
            "bytes": catalogue.manifest["bytes_per_vector"],
            "lists": kind.nlist,
            "effort": catalogue.manifest["tuned"]["effort"],
            "code": kind.code_size,
        }
    subprocess.run(["rm", "-rf", index], check=True)
    return figures


def show(f):
    print(
        f"{f['factory']:18s} {f['rows']:>9,} x {f['dimensions']:<4d}"
        f" train {f['train'][0]:6.0f} s {f['train'][1] / 2**20:5.0f} MiB"
        f"  add {f['add'][0]:6.0f} s {f['add'][1] / 2**20:5.0f} MiB"
        f"  merge {f['merge'][0]:5.0f} s {f['merge'][1] / 2**20:5.0f} MiB"
        f"  {f['bytes']:4.0f} B  nprobe {f['effort']:4d}  recall {f['recall']:.3f}"
        f"  {f['ms']:6.2f} ms",
        flush=True,
    )


def model(small, large, rows, dimensions):
    """The modeled figures of that many rows, from two measured sizes of one kind."""
    lists = neighbours.lists_for(rows)
    code = round(large["code"] * dimensions / large["dimensions"])

    def sample(n_lists, count):
        return min(count, 64 * n_lists + 4096)

    one = large["lists"] * large["dimensions"]
    train = large["train"][0] / (sample(large["lists"], large["rows"]) * one)
    train *= sample(lists, rows) * lists * dimensions
    add = large["add"][0] / (large["rows"] * one) * rows * lists * dimensions
    merge = large["merge"][0] / large["rows"] * rows
    shares = [f["effort"] / f["lists"] for f in (small, large)]
    grown = np.log(shares[1] / shares[0]) / np.log(large["rows"] / small["rows"])
    effort = max(1, lists * shares[1] * (rows / large["rows"]) ** min(0, grown))
    # Two unknown costs, of a number of a list's center and of a byte of code, from two sizes.
    matrix = np.array(
        [
            [f["lists"] * f["dimensions"], f["effort"] / f["lists"] * f["rows"] * (f["code"] + 8)]
            for f in (small, large)
        ]
    )
    costs = np.maximum(np.linalg.lstsq(matrix, [small["ms"], large["ms"]])[0], 0)
    scanned = effort * rows / lists * (code + 8)
    return {
        "rows": rows, "dimensions": dimensions, "lists": lists, "train": train, "add": add,
        "merge": merge, "disk": (large["bytes"] - large["code"] + code) * rows, "effort": effort,
        "memory": 2 * 4 * dimensions * lists, "ms": costs @ [lists * dimensions, scanned],
        "read": scanned,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1000000,4000000")
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--modeled", default="64,128", help="dimensions that costs are modeled for")
    parser.add_argument("--code", default="SQ8", help="of the kind, after IVF…")
    parser.add_argument("--lists", type=int, default=4096, help="0: as many as `train` chooses")
    parser.add_argument("--folder", help="where to keep the stores; a temporary folder if absent")
    parser.add_argument("--figures", help="a JSON file of what was measured before, and is now")
    options = parser.parse_args()
    kept, found = {}, []
    if options.figures and os.path.exists(options.figures):
        kept = files.read_json(options.figures)
    print(f"{PARTS} parts, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}; measured:")
    kept_folder = contextlib.nullcontext(options.folder)
    with kept_folder if options.folder else tempfile.TemporaryDirectory() as folder:
        for rows in sorted(map(int, options.rows.split(","))):
            factory = f"IVF{options.lists or neighbours.lists_for(rows)},{options.code}"
            name = f"{rows} x {options.dimensions} {factory}"
            if name not in kept:
                kept[name] = measured(folder, rows, options.dimensions, factory)
            found.append(kept[name])
            show(found[-1])
            if options.figures:
                files.write_text(options.figures, json.dumps(kept, indent=1) + "\n")
    for dimensions in map(int, options.modeled.split(",")) if len(found) > 1 else ():
        for rows in (10**8, 10**9):
            m = model(found[0], found[-1], rows, dimensions)
            print(
                f"  modeled IVF{m['lists']},{options.code} {rows:>13,} x {dimensions:<4d}"
                f" train {m['train'] / 3600:6.1f} h  add {m['add'] / 3600:7.1f} h"
                f"  merge {m['merge'] / 3600:5.1f} h (core-hours)"
                f"  disk {m['disk'] / 2**30:6.0f} GiB  memory {m['memory'] / 2**20:4.0f} MiB"
                f"  nprobe {m['effort']:5.0f}  {m['ms']:6.1f} ms"
                f"  {m['read'] / 2**20:6.1f} MiB read per query"
            )


if __name__ == "__main__":
    main()
