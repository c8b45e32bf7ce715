"""Whole datasets and tables through an `Embedder`: in memory, or into a store.

Images are read as in training, by TensorFlow's input pipeline, so that an image always gets the
same embedding.
"""

import sys

import numpy as np

from metriclearn.datasets import ProductTable
from retrieval.embeddings import images, parts, places, store
from retrieval.embeddings.embedder import Embedder
from retrieval.embeddings.kept import Kept, listing
from retrieval.embeddings.store import Embedded
from retrieval.embeddings.threads import ahead


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of a model's datasets in memory, with the reduced images.

    A model with a pretrained backbone may define `frozen_features(inputs, outputs)`. It gets the
    inputs and the result of `build` and returns a tensor [B, F], the backbone's features before any
    training, or None. It may build a second copy of the backbone, into which the checkpoint is not
    restored.

    If the model has a `table()` of its data set, the embeddings are kept in the cache folder and
    reused while checkpoint, configuration, images and code are the same.

    Args:
      model: a model module.
      names: which of its datasets, such as 'retrieval_query'.
      checkpoint: prefix as `trainer.checkpoints.latest` returns it.
      threads: number of TensorFlow's threads, 0 for all cores.

    Returns:
      {name: Embedded}.

    Raises:
      ValueError: the model sets no embeddings, a dataset is missing or empty, the checkpoint does
        not fit the model, or an image cannot be read.
    """
    rows = model.table() if hasattr(model, "table") else None
    kept = rows is not None and Kept(model, names, checkpoint, rows)
    found = kept.read() if kept else None
    if found:
        print(f"embeddings of {' and '.join(names)}: unchanged, from {kept.path}", file=sys.stderr)
        return found
    found = {}
    options = {"spec": images.spec_of(model, names), "threads": threads, "frozen": True}
    with Embedder.of_experiment(model, checkpoint, **options) as embedder:
        for name in names:

            def make(name=name):
                return images.of_model(model, [name])[name]

            parts = list(batches(embedder, make, f"embedding {name}", reduced=True))
            if not parts:
                raise ValueError(f"dataset {name!r} is empty: there is nothing to embed")
            found[name] = store.joined(parts)
    if kept:
        kept.write(found)
    return found


def batches(embedder, make, what, *, reduced=False):
    """Yields `Embedded` batch by batch of the dataset that `make()` returns; see `images.opened`.

    Args:
      embedder: an `Embedder`.
      make: returns the dataset.
      what: text for the progress report.
      reduced: also yield the reduced images.
    """
    keys = (*embedder.inputs, "image")
    with images.opened(make, what, reduced=reduced, keys=keys) as found:
        # TensorFlow decodes ahead by itself. This thread hashes files and copies batches, for which
        # a GPU would wait.
        for batch, facts in ahead((batch, images.facts(batch)) for batch in found):
            embeddings, features = embedder.run_both(batch)
            yield Embedded(embeddings, **facts, features=features)


def embed_to_store(model, name, folder, embedder, **options) -> dict:
    """Embeds one of a model's datasets into a store, or resumes; returns the store's manifest.

    Args:
      model: a model module.
      name: which of its datasets.
      folder: the store.
      embedder: an `Embedder` for the dataset's spec, or of a SavedModel.
      options: dtype, shard_rows: as in `store.fill`.
    """
    if places.is_remote(folder):  # object storage has no locks: as the only one of several
        embed_dataset_shard(model, name, folder, embedder, 0, 1, **options)
        return parts.finish(folder)
    source, embed = _of_dataset(model, name, embedder)
    return store.fill(folder, source, embed, **options)


def embed_dataset_shard(model, name, folder, embedder, shard, of, *, dtype="float32",
                        shard_rows=65536) -> int:  # fmt: skip
    """Embeds one shard of a model's dataset into a store that several processes fill.

    A shard that does not start with the first batch reads those before it.

    Args:
      model, name, folder, embedder: as in `embed_to_store`.
      shard, of, dtype, shard_rows: as in `embed_shard`.

    Returns:
      The number of embeddings committed.

    Raises:
      ValueError: the number of batches is unknown, or as in `parts.fill`.
    """
    source, embed = _of_dataset(model, name, embedder)
    if hasattr(model, "table"):
        source["images_sha256"] = listing(model.table())
    count, size = images.extent(model, name)
    plan = parts.Plan(source, dtype, of, count, 1, max(1, shard_rows // size))
    return parts.fill(folder, plan, shard, lambda batches: embed(batches.start, batches.stop))


def _of_dataset(model, name, embedder):
    """Like `_of_table`, for one of a model's datasets."""

    def embed(start, stop=None):
        def make():
            whole = images.of_model(model, [name])[name]
            return whole.skip(start).take(-1 if stop is None else stop - start)

        return ((items, []) for items in batches(embedder, make, f"embedding {name}"))

    return {"dataset": name, "dataset_model": model.__name__} | embedder.source, embed


def embed_table(rows: ProductTable, folder, embedder, *, on_bad_image="error", batch_size=64,
                **options) -> dict:  # fmt: skip
    """Embeds the images of a table into a store, or resumes; returns the store's manifest.

    Args:
      rows: a ProductTable, as `images.table` returns it.
      folder: the store.
      embedder: an `Embedder` of images.
      on_bad_image: 'error' or 'skip'; the manifest lists skipped images as `skipped`.
      batch_size: images per batch.
      options: dtype, shard_rows: as in `store.fill`.
    """
    if places.is_remote(folder):  # object storage has no locks: as the only one of several
        embed_shard(rows, folder, embedder, 0, 1, on_bad_image=on_bad_image,
                    batch_size=batch_size, **options)  # fmt: skip
        return parts.finish(folder)
    source, embed = _of_table(rows, embedder, on_bad_image, batch_size)
    return store.fill(folder, source, embed, **options)


def embed_shard(rows: ProductTable, folder, embedder, shard, of, *, on_bad_image="error",
                batch_size=64, dtype="float32", shard_rows=65536) -> int:  # fmt: skip
    """Embeds one shard of a table into a store that several processes fill, see `parts`.

    Args:
      rows, folder, embedder, on_bad_image, batch_size: as in `embed_table`.
      shard, of: number of the shard, from 0, and number of shards.
      dtype, shard_rows: as in `store.fill`.

    Returns:
      The number of embeddings committed.
    """
    source, embed = _of_table(rows, embedder, on_bad_image, batch_size)
    piece = max(1, shard_rows // batch_size)
    plan = parts.Plan(source, dtype, of, len(rows), batch_size, piece)
    return parts.fill(folder, plan, shard, lambda batches: embed(batches.start, batches.stop))


def _of_table(rows, embedder, on_bad_image, batch_size):
    """(source of the embeddings of a table, function of a first and an end batch that yields
    (items,
    a line per skipped image) for the batches between)."""
    if embedder.size is None:
        raise ValueError("this model needs more than images: it can embed only its own datasets")
    height, width = embedder.size
    boxes = embedder.boxes and rows.boxes is not None
    source = embedder.source | {
        "images_sha256": listing(rows, boxes),
        "image_size": [height, width],
        "boxes": boxes,
        "on_bad_image": on_bad_image,
        "batch_size": batch_size,  # shards end at ends of batches
    }

    def embed(start, stop=None):
        part = rows
        if stop is not None:
            part = rows.select(np.arange(len(rows))[: stop * batch_size])

        def make():
            return images.of_table(
                part, embedder.size, embedder.channels, batch_size, on_bad_image=on_bad_image,
                start_batch=start, boxes=boxes, max_pixels=embedder.max_pixels,
                resizing=embedder.resizing,
            )  # fmt: skip

        with images.opened(make, "embedding images", keys=("image",)) as read:
            for batch, facts in ahead((batch, images.facts(batch)) for batch in read):
                found = np.zeros((0, embedder.dimensions), np.float32)
                if len(batch["id"]):
                    found = embedder.run(batch)
                skipped = images.text(batch.get("skipped", ())).tolist()
                yield Embedded(found, **facts), skipped

    return source, embed
