"""Whole datasets and tables through an `Embedder`: in memory, or into a store.

They are read as in training, by TensorFlow's input pipeline, so that an image gets the same
embedding wherever it is embedded.
"""

import hashlib
import os

import numpy as np

from metriclearn.datasets import ProductTable
from retrieval.embeddings import images, store
from retrieval.embeddings.embedder import Embedder
from retrieval.embeddings.store import Embedded


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of a model's datasets in memory, with the reduced images.

    Args:
      model: a model module.
      names: which of its datasets, such as 'retrieval_query'.
      checkpoint: prefix as `trainer.checkpoints.latest` returns it.
      threads: for TensorFlow, 0 for all cores.

    Returns:
      {name: Embedded}.

    Raises:
      ValueError: the model sets no embeddings, a dataset is missing or empty, the checkpoint does
        not fit the model, or an image cannot be read.
    """
    found = {}
    spec = images.spec_of(model, names)
    with Embedder.of_experiment(model, checkpoint, spec=spec, threads=threads) as embedder:
        for name in names:

            def make(name=name):
                return images.of_model(model, [name])[name]

            parts = list(batches(embedder, make, f"embedding {name}", reduced=True))
            if not parts:
                raise ValueError(f"dataset {name!r} is empty: there is nothing to embed")
            found[name] = store.joined(parts)
    return found


def batches(embedder, make, what, *, reduced=False):
    """Yields `Embedded` batch by batch of the dataset that `make()` returns; see `images.opened`.

    Args:
      embedder: an `Embedder`.
      make: returns the dataset.
      what: words for the progress report.
      reduced: also give the reduced images.
    """
    keys = (*embedder.inputs, "image")
    with images.opened(make, what, reduced=reduced, keys=keys) as parts:
        for batch in parts:
            yield Embedded(embedder.run(batch), **images.facts(batch))


def embed_to_store(model, name, folder, embedder, **options) -> dict:
    """Embeds one of a model's datasets into a store, or resumes; returns the store's manifest.

    Args:
      model: a model module.
      name: which of its datasets.
      folder: the store.
      embedder: an `Embedder` made for the dataset's spec, or of a SavedModel.
      options: dtype, shard_rows: as in `store.fill`.
    """
    source = {"dataset": name, "dataset_model": model.__name__} | embedder.source

    def rest(done):
        def make():
            return images.of_model(model, [name])[name].skip(done)

        return ((items, []) for items in batches(embedder, make, f"embedding {name}"))

    return store.fill(folder, source, rest, **options)


def embed_table(rows: ProductTable, folder, embedder, *, on_bad_image="error", batch_size=64,
                **options) -> dict:  # fmt: skip
    """Embeds the images of a table into a store, or resumes; returns the store's manifest.

    Args:
      rows: a ProductTable, as `images.table` returns it.
      folder: the store.
      embedder: an `Embedder` of images.
      on_bad_image: 'error' or 'skip'; the manifest names those skipped, as `skipped`.
      batch_size: images at a time.
      options: dtype, shard_rows: as in `store.fill`.
    """
    if embedder.size is None:
        raise ValueError("this model takes no images alone: it can embed its own datasets only")
    height, width = embedder.size
    boxes = embedder.boxes and rows.boxes is not None
    source = embedder.source | {
        "images_sha256": _listing(rows, boxes),
        "image_size": [height, width],
        "boxes": boxes,
        "on_bad_image": on_bad_image,
        "batch_size": batch_size,  # shards end where batches do
    }

    def rest(done):
        def make():
            return images.of_table(
                rows, embedder.size, embedder.channels, batch_size, on_bad_image=on_bad_image,
                start_batch=done, boxes=boxes, max_pixels=embedder.max_pixels,
            )  # fmt: skip

        with images.opened(make, "embedding images", keys=("image",)) as parts:
            for batch in parts:
                found = np.zeros((0, embedder.dimensions), np.float32)
                if len(batch["id"]):
                    found = embedder.run(batch)
                skipped = images.text(batch.get("skipped", ())).tolist()
                yield Embedded(found, **images.facts(batch)), skipped

    return store.fill(folder, source, rest, **options)


def _listing(rows, boxes):
    """Hash of what a table lists: ids, files with their sizes and times, products, boxes."""
    stamps = map(_stamp, rows.paths.tolist())
    columns = (rows.ids, rows.paths, rows.products, rows.categories)
    rows_of = zip(*(column.tolist() for column in columns), stamps, strict=True)
    lines = "\n".join("\t".join(row) for row in rows_of)
    digest = hashlib.sha256(lines.encode())
    if boxes:
        digest.update(rows.boxes.tobytes())
    return digest.hexdigest()


def _stamp(path):
    """Size and time of a file, which tell that it changed; '' if there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"
