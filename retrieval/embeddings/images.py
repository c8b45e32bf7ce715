"""Image files and datasets as batches of NumPy arrays, ready to embed."""

import contextlib
import hashlib
import os
import re

import numpy as np

from metriclearn.datasets import folder as image_folder
from metriclearn.datasets import image_files, manifest, select_where, whole_catalogue
from retrieval import progress

# Maximum side of the images of the raw pixels baseline.
PIXEL_SIDE = 32
COLUMNS = ("id", "product", "category", "path", "skipped")


def table(folder="", csv="", where="", columns=""):
    """The ProductTable of a folder of images, a single image, or a manifest.

    Args:
      folder: a folder or an image, as `metriclearn.datasets.folder` reads it; '' for none.
      csv: a manifest, as `metriclearn.datasets.manifest` reads it; '' for none.
      where: conditions on its rows, as `metriclearn.datasets.parse_conditions` reads them.
      columns: other names of the manifest's columns, as path=file,label=sku.

    Raises:
      ValueError: the readers find an error, not exactly one is given, or no row is left.
    """
    if bool(folder) == bool(csv):
        raise ValueError("--folder and --manifest: give one of them")
    if folder and columns:
        raise ValueError("--columns: needs --manifest; a folder has no columns")
    if folder:
        rows = image_folder.load(os.path.expanduser(folder), fractions=None)
    else:
        rows = manifest.load(csv, fractions=None, columns=columns)
    return _where(rows, where)


def _where(rows, where):
    try:
        return select_where(rows, where)
    except ValueError as error:
        raise ValueError(f"--where={where}: {error}") from None


def catalogue(rows, where=""):
    """The catalogue rows of a ProductTable, or the rows that conditions choose."""
    return _where(rows, where) if where else whole_catalogue(rows)


def of_table(rows, size, channels, batch_size, *, on_bad_image="error", start_batch=0, boxes=True,
             max_pixels=image_files.MAX_PIXELS, resizing=None):  # fmt: skip
    """A finite dataset of a table's images, decoded as in the models' datasets.

    Args:
      rows: a ProductTable.
      size: (height, width) to resize to.
      channels: 3 or 1.
      batch_size: images per batch.
      on_bad_image: 'error' or 'skip', as in `metriclearn.datasets.pipeline.eval_batches`.
      start_batch: the first batch.
      boxes: crop to the boxes of the table, if it has any.
      max_pixels: size above which an image is refused.
      resizing: fields of `metriclearn.augment.Resizing` by name; not for a table with boxes.
    """
    from metriclearn import augment  # imports TensorFlow, which lists of images do not need
    from metriclearn.datasets import pipeline

    how = augment.Resizing(**resizing or {})
    return pipeline.eval_batches(
        rows,
        batch_size=batch_size,
        image_size=size,
        channels=channels,
        crop=augment.box_window() if boxes and rows.boxes is not None else how.window,
        method=how.method,
        on_bad_image=on_bad_image,
        start_batch=start_batch,
        max_pixels=max_pixels,
    )


def of_model(model, names):
    """{name: dataset} of some of `model.datasets()`.

    Raises:
      ValueError: a name that it does not return.
    """
    datasets = model.datasets()
    missing = [name for name in names if name not in datasets]
    if missing:
        raise ValueError(f"{model.__name__}.datasets() returns no {missing[0]!r}")
    # Only these: a model may create each dataset on demand.
    return {name: datasets[name] for name in names}


def spec_of(model, names):
    """{key: TensorSpec of unknown batch size} of the entries that all given datasets have."""
    import tensorflow as tf

    with tf.Graph().as_default():
        specs = [dict(d.element_spec) for d in of_model(model, names).values()]
    common = {}
    for key in specs[0]:
        if all(key in spec for spec in specs):
            shape = specs[0][key].shape
            for spec in specs[1:]:
                shape = shape.most_specific_compatible_shape(spec[key].shape)
            common[key] = tf.TensorSpec([None, *shape[1:]], specs[0][key].dtype)
    return common


def extent(model, name):
    """(number of batches, rows per batch or 64 if unknown) of one of the model's datasets.

    Raises:
      ValueError: the dataset has no known number of batches.
    """
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        dataset = of_model(model, [name])[name]
        count = int(session.run(tf.data.experimental.cardinality(dataset)))
    if count < 0:
        raise ValueError(
            f"the dataset {name!r} of {model.__name__} has no known number of batches: embed "
            "a listing (--folder, --manifest or --all), or all of it in one process"
        )
    return count, next(iter(dataset.element_spec.values())).shape[0] or 64


@contextlib.contextmanager
def opened(make, what, *, reduced=False, keys=None):
    """Yields an iterator over the NumPy batches of a dataset, with progress on stderr.

    Args:
      make: returns the dataset; called within a new graph.
      what: text for the progress report.
      reduced: also yield `reduced`, uint8: the images averaged down to at most 32 x 32.
      keys: the entries of a batch to fetch besides `id`, `product` and so on; None for all.

    Raises (while iterating):
      ValueError: an image cannot be read; the error names it.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        dataset = make()
        batch = v1.data.make_one_shot_iterator(dataset).get_next()
        fetches = {k: v for k, v in batch.items() if keys is None or k in keys or k in COLUMNS}
        if reduced:
            fetches["reduced"] = _reduced(tf, batch["image"])
        count = tf.data.experimental.cardinality(dataset)
    # The graph is not the default one while the caller runs.
    session = v1.Session(graph=graph)
    try:
        count = session.run(count)  # negative if unknown
        steps = _batches(session.make_callable(fetches))
        yield progress.track(
            steps, count if count > 0 else None, what, size=lambda part: len(part["id"])
        )
    finally:
        session.close()


def _batches(step):
    """Yields the results of `step` until its dataset ends."""
    import tensorflow as tf

    while True:
        try:
            part = step()
        except tf.errors.OutOfRangeError:
            return
        except tf.errors.InvalidArgumentError as error:
            # The pipeline's message is in an assertion, inside TensorFlow's message.
            said = re.search(r"assertion failed: \[(.*?)\](?= \[|\n|$)", error.message)
            if said is None:
                raise
            raise ValueError(said[1].replace("\\'", "'")) from None
        yield part


def _reduced(tf, image):
    side = tf.minimum(PIXEL_SIDE, tf.reduce_min(tf.shape(image)[1:3]))
    small = tf.image.resize(tf.cast(image, tf.float32), [side, side], method="area")
    return tf.cast(tf.round(small), tf.uint8)


def facts(batch):
    """{field of `Embedded`: [n] or None} of a batch, without the embeddings.

    Raises:
      ValueError: the batch lacks an entry that names its images.
    """
    for key in ("id", "product", "category"):
        if key not in batch:
            raise ValueError(
                f"the dataset's batches have no {key!r}: retrieval needs id, product "
                "and category of each image"
            )
    ids, products, categories = (text(batch[key]) for key in ("id", "product", "category"))
    found = {"ids": ids, "products": products, "categories": categories}
    found["images"] = batch.get("reduced")
    listed = [os.fsdecode(path) for path in batch["path"]] if "path" in batch else [""] * len(ids)
    found["paths"] = None
    if "path" in batch:
        found["paths"] = np.array([path and os.path.realpath(path) for path in listed], str)
    pixels = batch.get("image", [None] * len(ids))
    hashes = [_sha256(path, image) for path, image in zip(listed, pixels, strict=True)]
    found["hashes"] = np.array(hashes, str) if any(hashes) else None
    return found


def _sha256(path, image):
    """Hash of a file's bytes, or of the pixels of an image that is not a file."""
    if path:
        with open(path, "rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    return "" if image is None else hashlib.sha256(np.ascontiguousarray(image)).hexdigest()


def text(values):
    """Converts bytes [n], as returned by a session, to str [n]."""
    return np.array([value.decode() for value in values], dtype=str)


def wanted_of(model, name, wanted, of_file=None) -> dict:
    """{id: uint8 image [H, W, C]} for the wanted ids of one of the model's datasets.

    Images of the dataset have the model's size; `of_file(path)` may return an image with the
    proportions of the file instead, or None.
    """
    wanted, found = set(wanted), {}
    what = f"images of {name} for the report"
    with opened(lambda: of_model(model, [name])[name], what, keys=("image",)) as batches:
        for part in batches:
            files = part["path"] if of_file and "path" in part else [b""] * len(part["id"])
            for key, image, path in zip(text(part["id"]), part["image"], files, strict=True):
                if key in wanted:
                    shown = of_file(os.fsdecode(path)) if path else None
                    found[key] = image if shown is None else shown
            if len(found) == len(wanted):
                break
    return found
