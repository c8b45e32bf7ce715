"""Input speed: what crop, flip and colour cost over bare reading, decoding and resizing.

    python benchmarks/input_pipeline.py --manifest=path/to/manifest.csv

Four sources of batches from the same files, each run for whole epochs, alternating, in one process:
  bare      read, decode, resize: the limit of this machine for files of this kind
  pipeline  random crop, resize, flip, colour, uncached; wanted: at least 0.85 of bare
  first     the same with a cache of decoded pictures, its first epoch, compiling included
  later     the epochs after it; wanted: at least 3 times the first, and 3 times the pipeline
The files are read once before, so that all four find them in the system's cache. On other work's
time the rates fall, so processor time per picture (all threads) is given beside them.
"""

import argparse
import json
import statistics
import time

import tensorflow as tf

from metriclearn import augment
from metriclearn.datasets import manifest, pipeline


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
        """Images per second, and images per second of processor time, over one epoch."""
        start, used = time.perf_counter(), time.process_time()
        self.warm(self._steps)
        count = self._steps * self._batch
        return count / (time.perf_counter() - start), count / (time.process_time() - used)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", required=True, help="CSV manifest of the pictures")
    parser.add_argument("--role", default="train", help="rows to use (default: train)")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4, help="alternating rounds")
    parser.add_argument("--budget_mib", type=int, default=1024, help="of the decoded cache")
    parser.add_argument("--threads", type=int, default=0, help="0: TensorFlow's choice")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    flags = parser.parse_args()

    table = manifest.load(flags.manifest).where(role=flags.role)
    steps = len(table) // flags.batch_size
    sample = in_order(len(table), flags.batch_size)
    size = flags.image_size
    cache = pipeline.DecodedCache(flags.budget_mib << 20)

    def source(build):
        return Source(build, steps, flags.batch_size, flags.threads)

    limit = source(lambda: bare(table, sample, flags.batch_size, size))
    ours = source(lambda: augmented(table, sample, size))
    for each in (limit, ours):
        each.warm(steps)
    rates = {"bare": [], "pipeline": [], "first": [], "later": []}
    for _ in range(flags.epochs):
        rates["bare"].append(limit.epoch())
        rates["pipeline"].append(ours.epoch())
        # A new cache every round, so that the first epochs alternate with the rest as well.
        cache = pipeline.DecodedCache(flags.budget_mib << 20)
        cached = source(lambda cache=cache: augmented(table, sample, size, cache))
        rates["first"].append(cached.epoch())
        # The rest of the table (the last short batch) and what was made ahead.
        cached.warm(8)
        rates["later"].append(cached.epoch())
    cpu = {n: 1e6 / statistics.median(v for _, v in values) for n, values in rates.items()}
    rates = {name: [value for value, _ in values] for name, values in rates.items()}
    middle = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "pictures": len(table),
        "images_per_second": {name: round(value) for name, value in middle.items()},
        "pipeline_over_bare": round(middle["pipeline"] / middle["bare"], 3),
        "later_over_first": round(middle["later"] / middle["first"], 3),
        "later_over_pipeline": round(middle["later"] / middle["pipeline"], 3),
        "processor_microseconds": {name: round(value) for name, value in cpu.items()},
        "cache_mib": round(cache.bytes / (1 << 20), 1),
        "cached_pictures": len(cache),
    }
    if flags.json:
        print(json.dumps(result))
        return
    print(f"{len(table):,} pictures to {size} px, batch {flags.batch_size}, medians of rounds")
    for name, value in middle.items():
        every = ", ".join(f"{v:,.0f}" for v in rates[name])
        print(f"  {name:10} {value:8,.0f} images/s, {cpu[name]:5,.0f} us of processor   ({every})")
    print(f"  pipeline / bare  {result['pipeline_over_bare']:.2f}   (wanted >= 0.85)")
    print(f"  later / first    {result['later_over_first']:.2f}   (wanted >= 3)")
    print(f"  later / pipeline {result['later_over_pipeline']:.2f}   (wanted >= 3)")
    print(f"  cache: {len(cache):,} pictures, {result['cache_mib']} of {flags.budget_mib} MiB")


if __name__ == "__main__":
    main()
