"""A catalogue in Milvus against exact search: recall, filters, time.

    python -m benchmarks.milvus [--to=milvus:FOLDER | --to=milvus:http://host:19530]
        [--rows=50000] [--dimensions=128]

Exports clustered vectors by `index export`, and searches them by `Catalogue.find`, one query at a
time: among all items, and among a tenth and a hundredth of them by category.
"""

import argparse
import os
import tempfile
import time

import numpy as np

from benchmarks.scale import draw
from retrieval.catalogue import index, milvus, milvus_export
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings import store

QUERIES = 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", default="")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(f"{folder}/s")
        manifest = store.begin(f"{folder}/s", {"checkpoint_sha256": "w"})
        points = np.concatenate(list(draw(options.rows, options.dimensions, 1)))
        ids = np.char.add("item-", np.arange(options.rows).astype(str))
        random = np.random.default_rng(3)
        share = random.random(options.rows)
        categories = np.where(share < 0.01, "rare", np.where(share < 0.11, "tenth", "rest"))
        made = store.Embedded(points, ids, ids, categories)
        store.append(f"{folder}/s", manifest, made, 1)
        store.finish(f"{folder}/s", manifest)
        index.build(f"{folder}/s", f"{folder}/i", "Flat")
        to = f"{options.to or f'milvus:{folder}/lite'}#benchmark"
        start = time.perf_counter()
        about = milvus_export.export(f"{folder}/i", to)
        print(f"{to}: {about['count']} items exported in {time.perf_counter() - start:.1f} s")
        queries = np.concatenate(list(draw(QUERIES, options.dimensions, 2)))
        with Catalogue.open(f"{folder}/i") as exact, Catalogue.open(to) as found:
            for category in (None, "tenth", "rare"):
                truth = exact.results(exact.find(queries, 10, category))
                found.find(queries[:1], 10, category)
                start = time.perf_counter()
                answers = [found.results(found.find(q[None], 10, category))[0] for q in queries]
                seconds = time.perf_counter() - start
                hits = [
                    len({x["id"] for x in a} & {x["id"] for x in b}) / len(b)
                    for a, b in zip(answers, truth, strict=True)
                ]
                wrong = sum(x["category"] != category for a in answers for x in a if category)
                print(
                    f"{category or 'all items':10s} recall@10 {np.mean(hits):.4f}"
                    f"  {1000 * seconds / QUERIES:.1f} ms per query, {wrong} of another category",
                    flush=True,
                )
        milvus.release(milvus.Address.parse(to))


if __name__ == "__main__":
    main()
