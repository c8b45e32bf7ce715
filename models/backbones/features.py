"""Features of an unchanged backbone, computed once and kept on disk, so that a head trains on them.

    table = grocery.load(folder)
    found = features.embed(backbone, table, image_size=224)          # minutes, the first time
    batches = features.train_batches(found, sample, start_step=0)    # seconds an epoch

A store belongs to the backbone's weights, to what is done to the pixels, and to the very pictures,
and lies in the cache folder under a hash of these:

    features/HASH/features.npy   [views, N, F], memory-mapped when read
    features/HASH/note.json      what it was made of, and its checksum; without it a store is none
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import sys
import time

import numpy as np
import tensorflow as tf

from metriclearn.datasets import ProductTable, pipeline
from metriclearn.datasets.glyphs import cache_folder

v1 = tf.compat.v1

FORMAT = 1
FLUSH = 10  # seconds after which what is done is safe from a kill


@dataclasses.dataclass(frozen=True)
class Features:
    """What `embed` found or made.

    Attributes:
      values: float32 [views, N, F], memory-mapped; view 0 is of the pictures as they are.
      table: the ProductTable, whose row i is of values[:, i].
      folder: where the store lies.
    """

    values: np.ndarray = dataclasses.field(repr=False)
    table: ProductTable
    folder: str


def embed(
    backbone,
    table,
    *,
    image_size,
    crop=None,
    views=1,
    random_crop=None,
    augment=None,
    recipe="",
    seed=0,
    batch_size=64,
    bfloat16=False,
    cache=None,
):
    """Embeds every picture of a table, or finds that it was done.

    A run that was killed goes on where it was at most ten seconds before.

    Args:
      backbone: a `models.backbones.Backbone` with weights.
      table: a ProductTable of colour pictures, N rows.
      image_size: pixels, one number or (height, width).
      crop: of every picture as it is, as in `pipeline.eval_batches`.
      views: how often each picture is embedded: once as it is, and further times at random.
      random_crop, augment: of the further views, as in `pipeline.train_batches`.
      recipe: any text that tells these functions from others, as 'crop .5, flip'; it is part of the
        store's hash, functions cannot be.
      seed: of the random views.
      batch_size: pictures at a time.
      bfloat16: let convolutions run in 16 bits: twice as fast where the processor has them; the
        features then differ by 3% of their length.
      cache: the project's cache folder, the user's by default.

    Returns:
      `Features`.

    Raises:
      ValueError: a picture that cannot be read; a backbone without weights; functions without
        `recipe`; random views without a function; a damaged store.
    """
    if not backbone.fingerprint:
        raise ValueError(f"{backbone.name} has no weights yet: its features are not worth keeping.")
    if views < 1 or (views > 1) != bool(random_crop or augment):
        raise ValueError(f"views={views}: further views need random_crop or augment, one has none.")
    if (crop or random_crop or augment) and not recipe:
        raise ValueError("Give a recipe that tells these crops and augmentations from others.")
    height, width = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
    source = {
        "format": FORMAT,
        "backbone": backbone.name,
        "weights": backbone.fingerprint,
        "preprocessing": backbone.preprocessing,
        "image_size": [int(height), int(width)],
        "recipe": recipe,
        "views": views,
        "seed": seed if views > 1 else 0,
        "batch_size": batch_size if views > 1 else 0,
        "bfloat16": bool(bfloat16),
        "pictures": fingerprint(table),
    }
    name = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    folder = os.path.join(cache or cache_folder(), "features", name)
    try:
        os.makedirs(folder, exist_ok=True)
        with _only_writer(folder):
            if not os.path.exists(os.path.join(folder, "note.json")):
                batches = _batches(
                    table, (height, width), crop, views, random_crop, augment, seed, batch_size
                )
                _write(folder, source, backbone, (height, width), bfloat16, table, views, batches)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return Features(_read(folder, (views, len(table))), table, folder)


def fingerprint(table):
    """SHA-256 of what a table's pictures are: ids and boxes, pixels or the files' sizes and times.

    Raises:
      ValueError: a file that is missing.
    """
    digest = hashlib.sha256("\0".join(table.ids.tolist()).encode())
    if table.boxes is not None:
        digest.update(table.boxes.tobytes())
    if table.images is not None:
        digest.update(table.images)
        return digest.hexdigest()
    for path in table.paths.tolist():
        try:
            status = os.stat(path)
        except OSError as error:
            raise ValueError(f"cannot read the picture {path}: {error.strerror}") from None
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# -------------------------------------------------------------------------------- making a store


@contextlib.contextmanager
def _only_writer(folder):
    """Waits while another program makes the same store; then it is there."""
    with open(os.path.join(folder, ".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another program embeds the same in {folder}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _batches(table, size, crop, views, random_crop, augment, seed, batch_size):
    """A function: number of pictures embedded -> dataset of the rest, in order of [views, N]."""
    count = len(table)
    picture = {"image_size": size, "channels": 3}

    def rows(step):
        return (step * batch_size + tf.range(batch_size, dtype=tf.int64)) % count

    def plain(done):
        left = table.select(np.arange(done, count))
        return pipeline.eval_batches(left, batch_size=batch_size, crop=crop, **picture)

    def disturbed(done):
        options = {"crop": random_crop, "augment": augment, "seed": seed, **picture}
        start = (done - count) // batch_size
        return pipeline.train_batches(table, rows, start_step=start, **options)

    return lambda done: plain(done) if done < count else disturbed(done)


def _write(folder, source, backbone, size, bfloat16, table, views, rest):
    part, progress = (os.path.join(folder, n) for n in ("features.part", "progress.json"))
    count, total = len(table), views * len(table)
    config = v1.ConfigProto()
    if bfloat16:
        rewrites = config.graph_options.rewrite_options
        rewrites.auto_mixed_precision_onednn_bfloat16 = type(rewrites).ON
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        pixels = v1.placeholder(tf.uint8, [None, *size, 3])
        output = backbone.apply(pixels)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        run = session.make_callable(output, [pixels])
        shape = (total, int(output.shape[1]))
        done = _done(part, progress, shape)
        values = np.lib.format.open_memmap(part, "r+" if done else "w+", np.float32, shape=shape)
        report = _Report(f"features of {backbone.name}", done, total)
        flushed = time.monotonic()
        while done < total:
            iterator = v1.data.make_one_shot_iterator(rest(done))
            batch = session.make_callable(iterator.get_next()["image"])
            last = count if done < count else total
            while done < last:
                found = run(_next(batch))[: last - done]
                values[done : done + len(found)] = found
                done += len(found)
                report.update(done)
                if time.monotonic() - flushed > FLUSH:
                    values.flush()
                    _publish(progress, {"done": done})
                    flushed = time.monotonic()
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if bad.size:
        raise ValueError(f"the features of {str(table.ids[bad[0] % count])!r} are not finite")
    values.flush()
    del values
    with open(part, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    os.replace(part, os.path.join(folder, "features.npy"))
    _publish(os.path.join(folder, "note.json"), {"sha256": sha256, **source})
    with contextlib.suppress(FileNotFoundError):
        os.remove(progress)


def _done(part, progress, shape):
    """How many pictures a killed run left embedded; 0 where what it left is damaged."""
    try:
        with open(progress, encoding="utf-8") as file:
            done = json.load(file)["done"]
        return done if np.load(part, mmap_mode="r").shape == shape else 0
    except (OSError, ValueError, KeyError, EOFError):
        return 0


def _next(batch):
    try:
        return batch()
    except tf.errors.InvalidArgumentError as error:
        # The pipeline's own line, without the names of operations around it.
        told = re.search(r"cannot read the picture [^\n\]]*", error.message)
        raise ValueError(told[0] if told else error.message.splitlines()[0]) from None


def _publish(path, value):
    temporary = f"{path}.writing"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class _Report:
    """Lines on stderr for what takes over two seconds: how much is done, and when the rest is."""

    def __init__(self, what, done, total):
        self.what, self.first, self.total = what, done, total
        self.start, self.next = time.monotonic(), 2.0

    def update(self, done):
        elapsed = time.monotonic() - self.start
        if elapsed < self.next:
            return
        self.next = elapsed + FLUSH
        rate = (done - self.first) / elapsed
        print(
            f"{self.what}: {done} of {self.total}, {rate:.0f}/s, "
            f"ETA {(self.total - done) / rate:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def _read(folder, shape):
    path, again = os.path.join(folder, "features.npy"), f"delete {folder} and run again"
    try:
        with open(os.path.join(folder, "note.json"), encoding="utf-8") as file:
            expected = json.load(file)["sha256"]
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: cannot be read ({error}): {again}") from None
    if found != expected:
        raise ValueError(f"{path}: is damaged, its checksum differs: {again}")
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return values.reshape(*shape, -1)


# -------------------------------------------------------------------------------- batches


def train_batches(features, sample, *, start_step=0, seed=0, prefetch=2):
    """Endless batches of features, the batch of a step a pure function of (seed, step).

    Args:
      features: `Features`.
      sample: function, int64 scalar step -> int64 [B] rows of the table, as in
        `pipeline.train_batches`.
      start_step: the step of the first batch.
      seed: of the choice of a view, another for each picture of each batch.
      prefetch: batches made ahead.

    Returns:
      A tf.data.Dataset of dicts: features float32 [B, F], label int64 [B], id, product and category
      string [B].
    """
    views = len(features.values)

    def batch(step):
        rows = tf.cast(sample(step), tf.int64)
        view = tf.random.stateless_uniform(
            tf.shape(rows), tf.stack([tf.constant(seed, tf.int64), step]), 0, views, tf.int64
        )
        return _gather(features, view, rows)

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return steps.map(batch, num_parallel_calls=2, deterministic=True).prefetch(prefetch)


def eval_batches(features, *, batch_size, prefetch=2):
    """The features of every picture as it is, once, in the table's order; the last may be short."""
    count = len(features.table)
    rows = tf.data.Dataset.range(count).batch(batch_size)
    return rows.map(lambda r: _gather(features, tf.zeros_like(r), r)).prefetch(prefetch)


def _gather(features, view, rows):
    values, table = features.values, features.table
    found = tf.numpy_function(lambda v, r: values[v, r], [view, rows], tf.float32, stateful=False)
    columns = (("label", table.labels), ("id", table.ids), ("product", table.products))
    return {
        "features": tf.ensure_shape(found, [rows.shape[0], values.shape[2]]),
        **{name: tf.gather(tf.constant(column), rows) for name, column in columns},
        "category": tf.gather(tf.constant(table.categories), rows),
    }
