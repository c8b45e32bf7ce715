"""Input speed: what crop, flip and color cost over bare reading, decoding and resizing.

    python -m benchmarks.input_pipeline [--quick] [--manifest=path/to/manifest.csv]

Four sources of batches from the same files, each run for whole epochs, by turns, in one process:
  bare      read, decode, resize: the limit of this machine for files of this kind
  pipeline  random crop, resize, flip, color, uncached
  first     the same with a cache of decoded images, its first epoch, compiling included
  later     the epochs after it
The files are read once before, so that all four find them in the system's cache. Without a
manifest they are copies of the photos of examples/shop, reduced to a shorter side of 144 pixels.
"""

import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import figures
from metriclearn import augment
from metriclearn.datasets import ProductTable, pipeline
from metriclearn.datasets import manifest as manifests

SHOP = pathlib.Path(__file__).parent.parent / "examples" / "shop"


def in_order(count, batch):
    """sample(step): the table's rows in order, over and over."""
    return lambda step: (step * batch + tf.range(batch, dtype=tf.int64)) % count


def bare(table, sample, batch, size):
    def read(row):
        data = tf.io.read_file(tf.constant(table.paths)[row])
        image = tf.io.decode_jpeg(data, channels=3)
        return tf.cast(tf.round(tf.image.resize(image, (size, size))), tf.uint8)

    rows = tf.data.Dataset.range(1 << 40).map(sample).unbatch()
    images = rows.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return images.batch(batch).prefetch(2)


def augmented(table, sample, size, cache=None):
    batches = pipeline.train_batches(
        table,
        sample,
        image_size=size,
        crop=augment.random_window(),
        augment=augment.compose(augment.random_flip, augment.random_colour()),
        cache=cache,
    )
    return batches.map(lambda batch: batch["image"])


class Source:
    """A session of its own that runs a dataset epoch by epoch."""

    def __init__(self, build, steps, batch, threads):
        self._steps, self._batch = steps, batch
        graph = tf.Graph()
        with graph.as_default():
            images = tf.compat.v1.data.make_one_shot_iterator(build()).get_next()
            options = tf.compat.v1.ConfigProto(
                intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
            )
            self._next = tf.compat.v1.Session(config=options).make_callable(images.op)

    def warm(self, steps):
        for _ in range(steps):
            self._next()

    def epoch(self):
        """(seconds, seconds of processor) of one epoch."""
        start, used = time.perf_counter(), time.process_time()
        self.warm(self._steps)
        return time.perf_counter() - start, time.process_time() - used


def made(folder, count, side=144):
    """A ProductTable of `count` JPEG files, written to a folder from those of examples/shop."""
    found = sorted(SHOP.rglob("*.jpg"))
    paths = []
    for i in range(count):
        source = paths[i % len(found)] if i >= len(found) else None
        paths.append(pathlib.Path(folder) / f"{i}.jpg")
        if source:
            paths[-1].write_bytes(source.read_bytes())
            continue
        with Image.open(found[i]) as image:
            ratio = side / min(image.size)
            image.convert("RGB").resize([round(ratio * n) for n in image.size]).save(
                paths[-1], quality=90
            )
    return ProductTable(paths=list(map(str, paths)), products=[str(i // 4) for i in range(count)])


def measure(
    quick=False, manifest="", role="train", photos=2944, image_size=128, batch_size=64, epochs=4,
    budget_mib=1024, threads=0,
):  # fmt: skip
    epochs = 3 if quick else epochs
    with tempfile.TemporaryDirectory() as folder:
        table = manifests.load(manifest).where(role=role) if manifest else made(folder, photos)
        yield from _measured(table, image_size, batch_size, epochs, budget_mib << 20, threads)


def _measured(table, size, batch, epochs, budget, threads):
    steps = len(table) // batch
    sample = in_order(len(table), batch)

    def source(build):
        return Source(build, steps, batch, threads)

    limit = source(lambda: bare(table, sample, batch, size))
    ours = source(lambda: augmented(table, sample, size))
    for each in (limit, ours):
        each.warm(steps)
    turns = []
    for _ in range(epochs):
        # A new cache every round, so that the first epochs alternate with the rest as well.
        cache = pipeline.DecodedCache(budget)
        cached = source(lambda cache=cache: augmented(table, sample, size, cache))
        turn = [limit.epoch(), ours.epoch(), cached.epoch()]
        # The rest of the table (the last short batch) and what was made ahead.
        cached.warm(8)
        turns.append([*turn, cached.epoch()])
    turns = np.array(turns)  # [rounds, source, (seconds, processor)]
    plain, pipelined, first, later = turns[:, :, 0].T
    busy = 1e6 * np.median(turns[:, :, 1], 0) / (steps * batch)
    note = f"{busy[1]:.0f} us of processor per image: bare {busy[0]:.0f}"
    note = f"{len(table):,} images to {size} px; {note}"
    over, cached_over = figures.REACH["input_pipeline"]
    yield figures.figure(over, plain / pipelined, note=note)
    yield figures.figure(cached_over, pipelined / later, note=f"{busy[3]:.0f} us of processor")
    yield figures.figure("cached epochs over the first epoch, images per second", first / later)


if __name__ == "__main__":
    figures.program(measure)
