"""Time and memory from the columns of a large table to the first batch of a sampler.

Each row has a path of 100 characters, its own product name as a reader cuts it out of a line, and
a split; a product has ten rows. Only the images of the first batch exist.

    python -m benchmarks.large_table [--quick] [--rows=10000000]

At ten million rows the budget is 60 s and 4 GiB for the whole process.
"""

import os
import resource
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from PIL import Image

from benchmarks import figures
from metriclearn import pk_sampler
from metriclearn.datasets import ProductTable, pipeline

PATH = 100  # characters


def measure(quick=False, rows=10_000_000):
    rows = rows // 10 if quick else rows
    with tempfile.TemporaryDirectory() as folder:
        folder = os.path.join(folder, "x" * (PATH - len(folder) - len("//000000000.jpg")))
        os.mkdir(folder)
        columns = {
            "paths": [f"{folder}/{row:09d}.jpg" for row in range(rows)],
            "products": [f"product-{row // 10}" for row in range(rows)],
            "splits": [("train", "test")[row % 10 == 9] for row in range(rows)],
        }
        start, marks = time.perf_counter(), []
        mark = lambda what: marks.append(f"{what} {time.perf_counter() - start:.1f} s")  # noqa: E731
        table = ProductTable(**columns)
        del columns
        mark("table")
        train = table.where(split="train")
        mark("its training split")
        sample = pk_sampler(train.labels, products=16, images=4)
        mark("sampler")
        for path in train.paths[sample(0).numpy()]:
            Image.new("RGB", (160, 120)).save(path)
        batches = pipeline.train_batches(train, sample, image_size=96)
        (batch,) = batches.take(1)
        assert batch["image"].shape == (64, 96, 96, 3)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        with tf.Graph().as_default() as graph:
            pipeline.train_batches(train, sample, image_size=96)
            size = graph.as_graph_def().ByteSize() / 2**20
    note = f"{', '.join(marks)}; the graph has {size:.1f} MiB"
    yield figures.figure(f"{rows:,} rows, from columns to the first batch", seconds, "s", note)
    yield figures.figure(f"{rows:,} rows, peak memory", peak, "GiB")


if __name__ == "__main__":
    figures.program(measure)
