"""An index in parts: what its steps cost, and what they would cost for 100 million items and more.

    python -m benchmarks.scale [--rows=250000,1000000] [--dimensions=64,128] [--factories=…]

builds every index by `index train`, `add --part` and `merge` in processes of their own, with
--memory=0.5, over clustered vectors. Measured per step: core-seconds (processor time, which other
programs on the machine do not change), and the largest anonymous memory, which leaves out files
that the system maps and can drop. Then the index is searched, one query at a time on one core.

The model below it takes the costs that grow with the work: training with sample x lists x
dimensions, adding with items x lists x dimensions, a search with lists x dimensions and with the
codes that it reads. The share of lists that a search needs for its recall is extrapolated from the
two sizes by a power law. What is printed of 100 million items and more is modeled, not measured.
"""

import argparse
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


def model(small, large, rows):
    """The modeled figures of that many rows, from two measured sizes of one kind."""
    dimensions, lists = large["dimensions"], neighbours.lists_for(rows)

    def sample(n_lists, count):
        return min(count, 64 * n_lists + 4096)

    work = sample(large["lists"], large["rows"]) * large["lists"] * dimensions
    train = large["train"][0] / work * sample(lists, rows) * lists * dimensions
    add = large["add"][0] / (large["rows"] * large["lists"]) * rows * lists
    merge = large["merge"][0] / large["rows"] * rows
    grown = np.log(large["effort"] / small["effort"]) / np.log(large["rows"] / small["rows"])
    effort = large["effort"] * (rows / large["rows"]) ** max(0.0, grown)
    # Two unknown costs, of a list's center and of a code, from two sizes.
    scanned = [f["effort"] * f["rows"] / f["lists"] for f in (small, large)]
    matrix = np.array([[small["lists"], scanned[0]], [large["lists"], scanned[1]]])
    per_list, per_code = np.maximum(np.linalg.lstsq(matrix, [small["ms"], large["ms"]])[0], 0)
    ms = per_list * lists + per_code * effort * rows / lists
    held = 2 * 4 * dimensions * lists
    return {
        "rows": rows, "dimensions": dimensions, "lists": lists, "train": train, "add": add,
        "merge": merge, "disk": large["bytes"] * rows, "memory": held, "effort": effort, "ms": ms,
        "read": effort * rows / lists * (large["code"] + 8),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="250000,1000000")
    parser.add_argument("--dimensions", default="64,128")
    parser.add_argument("--factories", default="SQ8", help="codes after IVF…, parted by commas")
    parser.add_argument("--folder", help="where to work; a temporary folder if absent")
    options = parser.parse_args()
    sizes = sorted(map(int, options.rows.split(",")))
    print(f"{PARTS} parts, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}; measured:")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for dimensions in map(int, options.dimensions.split(",")):
            for code in options.factories.split(","):
                found = []
                for rows in sizes:
                    factory = f"IVF{neighbours.lists_for(rows)},{code}"
                    found.append(measured(folder, rows, dimensions, factory))
                    show(found[-1])
                for rows in (10**8, 10**9) if len(found) > 1 else ():
                    m = model(found[0], found[-1], rows)
                    print(
                        f"  modeled IVF{m['lists']},{code} {rows:>13,} x {dimensions:<4d}"
                        f" train {m['train'] / 3600:6.1f} h  add {m['add'] / 3600:7.1f} h"
                        f"  merge {m['merge'] / 3600:5.1f} h (core-hours)"
                        f"  disk {m['disk'] / 2**30:6.0f} GiB  nprobe {m['effort']:5.0f}"
                        f"  {m['ms']:6.1f} ms  {m['read'] / 2**20:6.1f} MiB read per query",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
