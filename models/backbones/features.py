"""Features of an unchanged backbone, computed once and kept on disk, so that a head trains on them.

    table = grocery.load(folder)
    found = features.embed(backbone, table, image_size=224)          # minutes, the first time
    batches = features.train_batches(found, sample, start_step=0)    # seconds per epoch

They are kept in a store of embeddings (`retrieval.embeddings.store`) in the cache folder, under a
hash of the backbone's weights, of what is done to the pixels, and of the very images. View 0 of
each image is the image as it is; further views are random crops and augmentations of it. With
`with_color`, the image's color histogram follows its features.
"""

import dataclasses
import hashlib
import json
import os

import numpy as np
import tensorflow as tf

from metriclearn.datasets import ProductTable, image_files, pipeline
from metriclearn.datasets.glyphs import cache_folder
from models.backbones import color
from retrieval.embeddings import images, store
from retrieval.embeddings.embedder import Embedder

v1 = tf.compat.v1

FORMAT = 2
SHARD_SECONDS = 10  # after which what is done is safe from a kill


@dataclasses.dataclass(frozen=True)
class Features:
    """What `embed` found or made.

    Attributes:
      values: float32 [views, N, F]; view 0 is of the images as they are.
      table: the ProductTable, whose row i is of values[:, i].
      folder: the store.
    """

    values: np.ndarray = dataclasses.field(repr=False)
    table: ProductTable
    folder: str


def embed(
    backbone,
    table,
    *,
    image_size,
    with_color=False,
    crop=None,
    method="bilinear",
    views=1,
    random_crop=None,
    augment=None,
    recipe="",
    seed=0,
    batch_size=64,
    max_pixels=image_files.MAX_PIXELS,
    cache=None,
):
    """Embeds every image of a table, or finds that it was done.

    A run that was killed resumes at most ten seconds before the kill.

    Args:
      backbone: a `models.backbones.Backbone` with weights.
      table: a ProductTable of color images, N rows.
      image_size: pixels, one number or (height, width).
      with_color: append `color.histogram`: F grows by 512.
      crop, method: of every image as it is, as in `pipeline.eval_batches`.
      views: how often each image is embedded: once as it is, then at random.
      random_crop, augment: of the further views, as in `pipeline.train_batches`.
      recipe: any text that identifies these functions, such as 'crop .5, flip'. It is part of the
        store's hash, since functions cannot be.
      seed: of the random views.
      batch_size: images per batch.
      max_pixels: size above which an image is refused.
      cache: the project's cache folder, the user's by default.

    Returns:
      `Features`.

    Raises:
      ValueError: an image that cannot be read; a backbone without weights; functions without
        `recipe`; random views without a function; a damaged store.
    """
    if not backbone.fingerprint:
        raise ValueError(f"{backbone.name} has no weights yet: its features are not worth keeping.")
    if views < 1 or (views > 1) != bool(random_crop or augment):
        raise ValueError(f"views={views}: further views need random_crop or augment, one has none.")
    if (crop or random_crop or augment) and not recipe:
        raise ValueError("Give a recipe that identifies these crops and augmentations.")
    height, width = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
    size = int(height), int(width)
    source = {
        "format": FORMAT,
        "backbone": backbone.name,
        "checkpoint_sha256": backbone.fingerprint,
        "preprocessing": backbone.preprocessing,
        "image_size": list(size),
        "recipe": recipe,
        "views": views,
        "seed": seed if views > 1 else 0,
        "batch_size": batch_size if views > 1 else 0,
        "images_sha256": fingerprint(table),
    }
    if method != "bilinear":
        source["method"] = method
    if with_color:
        source["color"] = f"rgb histogram {color.BINS}"
    name = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    folder = os.path.join(cache or cache_folder(), "features", name)
    image = {"image_size": size, "channels": 3, "max_pixels": max_pixels, "method": method}

    def plain(start_batch):
        return pipeline.eval_batches(
            table, batch_size=batch_size, crop=crop, start_batch=start_batch, **image
        )

    def disturbed(start_step):
        def rows(step):
            return (step * batch_size + tf.range(batch_size, dtype=tf.int64)) % len(table)

        options = {"crop": random_crop, "augment": augment, "seed": seed, **image}
        batches = pipeline.train_batches(table, rows, start_step=start_step, **options)
        return batches.take(-(-(views - 1) * len(table) // batch_size) - start_step)

    def rest(done):
        """The batches after the first `done`: of the images as they are, then of random views."""
        plain_batches = -(-len(table) // batch_size)
        with _embedder(backbone, size, source, with_color) as embedder:
            if done < plain_batches:
                yield from _embedded(embedder, lambda: plain(done), table, done * batch_size)
            if views > 1:
                step = max(0, done - plain_batches)
                row = len(table) + step * batch_size
                yield from _embedded(embedder, lambda: disturbed(step), table, row, views)

    wait = f"waiting: another program embeds the same in {folder}"
    try:
        store.fill(folder, source, rest, shard_seconds=SHARD_SECONDS, wait=wait)
        values = store.read(folder).embeddings
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror or error}") from None
    except ValueError as error:
        if folder in str(error):  # it is the store that is damaged, not an image
            raise ValueError(f"{error}: delete {folder} and run again") from None
        raise
    return Features(values.reshape(views, len(table), -1), table, folder)


def _embedder(backbone, size, source, with_color):
    def build(session):
        pixels = v1.placeholder(tf.uint8, [None, *size, 3], "image")
        output = backbone.apply(pixels)
        if with_color:
            output = tf.concat([output, color.histogram(pixels)], 1)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        return {"image": pixels}, output

    return Embedder.of_graph(build, size=size, channels=3, source=source)


def _embedded(embedder, make, table, row, views=1):
    """Yields (Embedded, no skipped images) of batches whose first is of `row` of [views * N]."""
    total = views * len(table)
    with images.opened(make, "embedding features", keys=("image",)) as batches:
        for batch in batches:
            found = embedder.run(batch)[: total - row]
            view, place = np.divmod(np.arange(row, row + len(found)), len(table))
            ids = [
                f"{table.ids[p]} view {v}" if v else table.ids[p]
                for v, p in zip(view, place, strict=True)
            ]
            row += len(found)
            products, categories = (
                c[place].astype(str) for c in (table.products, table.categories)
            )
            yield store.Embedded(found, np.array(ids, str), products, categories), []


def fingerprint(table):
    """SHA-256 of what a table's images are: ids and boxes, pixels or the files' sizes and times.

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
            raise ValueError(f"cannot read the image {path}: {error.strerror}") from None
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------- batches


def train_batches(features, sample, *, start_step=0, seed=0, prefetch=2, part=(0, 1)):
    """Endless batches of features, the batch of a step a pure function of (seed, step).

    Args:
      features: `Features`.
      sample: function, int64 scalar step -> int64 [B] rows of the table, as in
        `pipeline.train_batches`.
      start_step: the step of the first batch.
      seed: of the choice of a view, another for each image of each batch.
      prefetch: batches made ahead.
      part: (number of this worker, number of workers) that share each batch.

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
        if part[1] > 1:
            view, rows = pipeline.part_of(part, view, rows)
        return _gather(features, view, rows)

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return steps.map(batch, num_parallel_calls=2, deterministic=True).prefetch(prefetch)


def eval_batches(features, *, batch_size, prefetch=2):
    """The features of every image as it is, once, in the table's order; the last may be short."""
    count = len(features.table)
    rows = tf.data.Dataset.range(count).batch(batch_size)
    return rows.map(lambda r: _gather(features, tf.zeros_like(r), r)).prefetch(prefetch)


def _gather(features, view, rows):
    values, table = features.values, features.table
    found = tf.numpy_function(lambda v, r: values[v, r], [view, rows], tf.float32, stateful=False)
    columns = {"label": table.labels, "id": table.ids, "product": table.products}
    columns["category"] = table.categories
    return {
        "features": tf.ensure_shape(found, [rows.shape[0], values.shape[2]]),
        **{name: pipeline.look_up(column, rows) for name, column in columns.items()},
    }
