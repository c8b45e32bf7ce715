"""Time and memory from the columns of a large table to the first batch of a sampler.

Each row has a path of 100 characters, its own product name as a reader cuts it out of a line, and
a split; a product has ten rows. Only the images of the first batch exist.

    python -m benchmarks.large_table --rows=10000000

At ten million rows the budget is 60 s and 4 GiB for the whole process.
"""

import argparse
import os
import resource
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from PIL import Image

from metriclearn import pk_sampler
from metriclearn.datasets import ProductTable, pipeline

PATH = 100  # characters


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    report("TensorFlow")
    with tempfile.TemporaryDirectory() as folder:
        folder = os.path.join(folder, "x" * (PATH - len(folder) - len("//000000000.jpg")))
        os.mkdir(folder)
        columns = {
            "paths": [f"{folder}/{row:09d}.jpg" for row in range(rows)],
            "products": [f"product-{row // 10}" for row in range(rows)],
            "splits": [("train", "test")[row % 10 == 9] for row in range(rows)],
        }
        report("columns, as lists of str")
        start = time.perf_counter()
        table = ProductTable(**columns)
        del columns
        report("table", start)
        train = table.where(split="train")
        report("its training split", start)
        sample = pk_sampler(train.labels, products=16, images=4)
        report("sampler", start)
        for path in train.paths[sample(0).numpy()]:
            Image.new("RGB", (160, 120)).save(path)
        batches = pipeline.train_batches(train, sample, image_size=96)
        (batch,) = batches.take(1)
        assert batch["image"].shape == (64, 96, 96, 3)
        report("first batch", start)
        with tf.Graph().as_default() as graph:
            pipeline.train_batches(train, sample, image_size=96)
            size = graph.as_graph_def().ByteSize()
        print(f"{'graph':28}{size / 2**20:8.1f} MiB")


def report(what, start=None):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = "" if start is None else f"{time.perf_counter() - start:8.1f} s"
    print(f"{what:28}{peak:8.2f} GiB at most{seconds}", flush=True)


if __name__ == "__main__":
    main()
