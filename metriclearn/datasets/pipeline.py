"""From a product table to batches: decoding in parallel, in an order fixed by (seed, step).

A batch is a pure function of (seed, step): its rows come from `sample(step)`, its augmentation from
seeds made of (seed, step, place in the batch). So a run resumes exactly from its step alone,
whatever the number of threads.

A dataset belongs to the graph in which it is built: call these functions under the
`with graph.as_default():` that trains, or eagerly.
"""

import os
import warnings

import numpy as np
import tensorflow as tf

from metriclearn import augment as augmentation
from metriclearn.datasets import images as pictures
from metriclearn.datasets.cache import DecodedCache

__all__ = [
    "DecodedCache",
    "eval_batches",
    "train_batches",
    "unreadable_images",
    "usable_images",
]

# With a crop, pictures keep twice the target's size: a window of half a side is still no smaller
# than the target.
CROP_RESERVE = 2
CROP_STREAM = 1 << 40  # tells the seeds of windows from those of `augment`
# Tensors of a graph travel in one protocol buffer of at most 2 GiB.
MAX_GRAPH_BYTES = 1 << 30


def _check_size(image_size):
    height, width = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
    if int(height) != height or int(width) != width or not (height > 0 and width > 0):
        raise ValueError(f"image_size must be a number of pixels or two, not {image_size!r}")
    return int(height), int(width)


def _check_pixels(table, channels):
    if table.images is None:
        return
    if table.images.nbytes > MAX_GRAPH_BYTES:
        raise ValueError(
            f"{table.images.nbytes >> 20} MiB of pixels do not fit into a graph: write the "
            "pictures to files and give their paths"
        )
    if table.images.shape[3] != channels:
        raise ValueError(
            f"the pictures have {table.images.shape[3]} channels, channels={channels} is asked for"
        )


def _columns(table, rows):
    """What a batch says of its rows beside the pixels."""
    return {
        "label": tf.gather(tf.constant(table.labels), rows),
        "id": tf.gather(tf.constant(table.ids), rows),
        "product": tf.gather(tf.constant(table.products), rows),
        "category": tf.gather(tf.constant(table.categories), rows),
    }


def _reason(path):
    """Why a file cannot be decoded, as far as can be told without decoding it again."""
    path = os.fsdecode(path)
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError as error:
        return (error.strerror or str(error)).encode()
    if not head:
        return b"the file is empty"
    known = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")
    if not head.startswith(known):
        return b"not a JPEG, PNG, GIF, BMP or WebP file"
    if head.startswith(b"BM") and head[28:29] < b"\x18":
        return b"a BMP of fewer than 24 bits a pixel; save it as PNG"
    if head[12:16] == b"VP8X" and head[20] & 2:
        return b"an animated WebP; save its first picture as PNG"
    if head.startswith(b"RIFF") and not hasattr(tf.raw_ops, "DecodeWebP"):
        return b"a WebP, which TensorFlow reads from version 2.20 on; save it as PNG"
    return b"the file is truncated or damaged"


def _each(function, items, most):
    """(places int64 [k], results [k, ...]) of the items, at most `most`, that do not fail.

    A dataset within the function: what goes wrong with one picture can be dropped there, and one
    thread makes a whole batch, which costs less than handing pictures from thread to thread.
    Results of unequal shapes are padded to the largest.
    """
    places = tf.range(tf.shape(items[0], out_type=tf.int64)[0])
    results = tf.data.Dataset.from_tensor_slices((places, items))
    results = results.map(lambda place, item: (place, function(*item))).ignore_errors()
    # A last one that is then taken off, so that there is a batch even when all have failed.
    last = tf.nest.map_structure(
        lambda spec: tf.zeros([side or 0 for side in spec.shape], spec.dtype), results.element_spec
    )
    results = results.concatenate(tf.data.Dataset.from_tensors(last)).padded_batch(most + 1)
    return tf.nest.map_structure(lambda every: every[:-1], results.get_single_element())


def _complaint(path):
    parts = "cannot read the picture ", path, ": ", tf.numpy_function(_reason, [path], tf.string)
    remedy = "; repair it, or set on_bad_image to 'skip' to leave such pictures out"
    return tf.strings.join([*parts, remedy])


def _every(function, paths, items, most):
    """The results [B, ...] of (path, item, ...); the first one that fails is named.

    A decoding op cannot say which file it was given, hence the comparison of places.
    """
    count = tf.size(paths, out_type=tf.int64)
    places, results = _each(function, (paths, *items), most)
    # In order, so the first place that holds another picture is the one that is missing.
    places = tf.pad(places, [[0, count - tf.size(places, out_type=tf.int64)]], constant_values=-1)
    good = tf.equal(places, tf.range(count))
    message = tf.cond(
        tf.reduce_all(good),
        lambda: tf.constant(""),
        lambda: _complaint(paths[tf.argmin(tf.cast(good, tf.int32))]),
    )
    check = tf.debugging.Assert(tf.equal(message, ""), [message], summarize=-1)
    with tf.control_dependencies([check]):
        return tf.nest.map_structure(tf.identity, results)


def _loader(table, most, size, channels, crop, method, cache):
    """A function (rows int64 [B], seeds int64 [B, 2]) -> uint8 [B, *size, channels]; B <= most."""
    if table.images is not None and table.images.shape[1:3] == size and not crop:
        return lambda rows, seeds: tf.gather(tf.constant(table.images), rows)
    least = size if crop is None else tuple(CROP_RESERVE * side for side in size)

    # A window whose numbers can be drawn for a whole batch has them drawn so, before decoding.
    place, draws = getattr(crop, "place", crop), getattr(crop, "draws", tf.identity)

    def placed(rows, seeds):
        """What a window depends on beside the picture: numbers, and boxes where there are any."""
        # Not the augmentation's own numbers again: a flip must not go with the crop's place.
        numbers = draws(tf.bitwise.bitwise_xor(seeds, [CROP_STREAM, 0]))
        boxed = table.boxes is not None
        return (numbers, tf.gather(tf.constant(table.boxes), rows)) if boxed else (numbers,)

    def windowed(numbers):
        return crop and (lambda height, width, box: place(height, width, box, numbers))

    def decoded(path, window=None, box=None):
        data = tf.io.read_file(path)
        return pictures.decode(data, channels=channels, least=least, window=window, box=box)

    def from_memory(rows, seeds):
        def one(row, numbers, box=None):
            image = pictures.cut(tf.constant(table.images)[row], windowed(numbers), box)
            return pictures.resize(image, size, method)

        return _each(one, (rows, *placed(rows, seeds)), most)[1]

    def from_files(rows, seeds):
        def one(path, numbers, box=None):
            return pictures.resize(decoded(path, windowed(numbers), box)[0], size, method)

        paths, given = tf.gather(tf.constant(table.paths), rows), placed(rows, seeds)
        if not hasattr(crop, "place"):
            return _every(one, paths, given, most)

        def read(path):
            data = tf.io.read_file(path)
            return data, *pictures.jpeg_sides(data)

        def planned(path, data, *plan):
            image = pictures.decode_planned(data, *plan, channels=channels, least=least)
            return pictures.resize(image, size, method)

        def all_jpeg():
            plan = pictures.plan_jpeg(sides, least, windowed(given[0]), *given[1:] or [None])
            return _every(planned, paths, (data, *plan), most)

        # Planned for the batch, one by one only decoded: ops on single numbers take as long as a
        # small picture. Whatever is no JPEG, or cannot be read, sends the batch the long way.
        data, is_jpeg, sides = _each(read, (paths,), most)[1]
        return tf.cond(
            tf.equal(tf.size(data), tf.size(paths)) & tf.reduce_all(is_jpeg),
            all_jpeg,
            lambda: _every(one, paths, given, most),
        )

    def from_cache(rows, seeds):
        def one(path):
            image, ratio = decoded(path)
            return image, tf.concat([tf.shape(image)[:2], [ratio]], 0)

        def window(size, numbers, box=None):
            return tf.concat(pictures.place(windowed(numbers), size[:2], size[2], box), 0)

        sizes = tf.numpy_function(cache.sizes, [rows], tf.int32, stateful=False)
        sizes = tf.ensure_shape(sizes, [None, 3])
        new = tf.where(tf.equal(sizes[:, 0], 0))
        paths = tf.gather(tf.constant(table.paths), tf.gather_nd(rows, new))
        images, found = _every(one, paths, (), most)
        sizes = tf.tensor_scatter_nd_update(sizes, new, found)
        if hasattr(crop, "place"):
            windows = place(sizes[:, 0], sizes[:, 1], None, placed(rows, seeds)[0])
        else:
            windows = _each(window, (sizes, *placed(rows, seeds)), most)[1]
        canvas = tf.numpy_function(
            cache.cut, [rows, windows, new[:, 0], images, found], tf.uint8, stateful=False
        )
        canvas = tf.ensure_shape(canvas, [None, None, None, channels])
        return pictures.resize_windows(canvas, windows[:, 2:], size, method)

    if table.images is not None:
        return from_memory
    return from_files if cache is None else from_cache


def _batches(
    table, steps, rows_of, most, *, image_size, channels, crop, seed, method, cache, augment,
    paths=False,
):  # fmt: skip
    """Batches of the rows that `rows_of(step)` gives for each of `steps`, at most `most`.

    paths: tell the files, too; not in training, whose resumed runs must find the same entries.
    """
    size = _check_size(image_size)
    _check_pixels(table, channels)
    if cache is not None and table.images is not None:
        raise ValueError("the pixels are in memory: a cache of decoded pictures has no use")
    load = _loader(table, most, size, channels, crop, method, cache)

    def batch(step):
        rows = tf.cast(rows_of(step), tf.int64)
        message = "the sampler gave a row that the table does not have"
        inside = tf.reduce_all((rows >= 0) & (rows < len(table)))
        with tf.control_dependencies([tf.debugging.Assert(inside, [message, rows])]):
            rows = tf.identity(rows)
        seeds = augmentation.seeds_of(seed, step, tf.size(rows))
        image = tf.ensure_shape(load(rows, seeds), [*rows.shape, *size, channels])
        if augment is not None:
            # Whole batches: on single pictures the ops would cost more than their work.
            image = tf.ensure_shape(augmentation.batched(augment)(image, seeds), image.shape)
        columns = _columns(table, rows)
        if paths:
            columns["path"] = tf.gather(tf.constant(table.paths), rows)
        return {"image": image, **columns}

    return steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def train_batches(
    table,
    sample,
    *,
    start_step=0,
    image_size,
    channels=3,
    crop=None,
    augment=None,
    seed=0,
    method="bilinear",
    cache=None,
    prefetch=2,
):
    """Endless batches of training pictures, the batch of a step a pure function of (seed, step).

    Args:
      table: a ProductTable.
      sample: function, int64 scalar step -> int64 [B] rows of the table, B known statically; pure
        (see `metriclearn.samplers`).
      start_step: the step of the first batch.
      image_size: pixels, one number or (height, width).
      channels: 3 or 1.
      crop: None, or a function (height, width, box int32 [4], seed int64 [2]) -> int32 [4] as
        y, x, h, w, the window that is kept before the resize (`augment.random_window`, ...). For
        JPEG only the window is decoded.
      augment: None, or a function (uint8 [H, W, C], seed int64 [2]) -> uint8 [H, W, C], stateless.
        The seed is another for every (seed, step, place in the batch). It is run on whole batches
        (`augment.batched`).
      seed: an integer.
      method: of `tf.image.resize`.
      cache: None, or a DecodedCache. Batches do not depend on what it holds. Against those made
        without it, a value may differ by one grey level (see `images.resize_windows`).
      prefetch: batches made ahead.

    Returns:
      A tf.data.Dataset of dicts: image uint8 [B, H, W, C], label int64 [B], id, product and
      category string [B].

    Raises:
      ValueError: an empty table, a sampler of unknown batch size, a size that is none. When it
        runs, tf.errors.InvalidArgumentError names a file that cannot be read or decoded.
    """
    if not len(table):
        raise ValueError("the table of training pictures is empty")
    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max >> 24)
    shape = steps.map(sample).element_spec.shape
    if shape.rank != 1 or shape[0] is None:
        raise ValueError(f"sample(step) must return row indices of static shape [B], not {shape}")
    dataset = _batches(
        table,
        steps,
        sample,
        int(shape[0]),
        image_size=image_size,
        channels=channels,
        crop=crop,
        seed=seed,
        method=method,
        cache=cache,
        augment=augment,
    )
    return dataset.prefetch(prefetch)


def eval_batches(
    table,
    *,
    batch_size,
    image_size,
    channels=3,
    crop=None,
    method="bilinear",
    prefetch=2,
):
    """Every picture once, in the table's order; the last batch may be short.

    Args:
      batch_size: pictures in a batch.
      crop: as in `train_batches`, a deterministic one (`augment.box_window`).
      Others: as in `train_batches`, which also tells what a batch is and what is raised.

    Returns:
      A finite tf.data.Dataset of dicts, which also hold path, string [B], '' of pictures in memory.
    """
    if not len(table):
        raise ValueError("the table of pictures is empty")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size!r}")

    def rows(step):
        return tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, len(table)))

    dataset = _batches(
        table,
        tf.data.Dataset.range(-(-len(table) // batch_size)),
        rows,
        batch_size,
        image_size=image_size,
        channels=channels,
        crop=crop,
        seed=0,
        method=method,
        cache=None,
        augment=None,
        paths=True,
    )
    return dataset.prefetch(prefetch)


def unreadable_images(table):
    """Decodes every file once, as cheaply as it goes, and finds those that fail.

    Returns:
      int64 [M] rows of the table whose file cannot be read or decoded.
    """
    if table.images is not None or not len(table):
        return np.zeros(0, np.int64)

    def attempt(row):
        data = tf.io.read_file(tf.constant(table.paths)[row])
        image, _ = pictures.decode(data, least=(1, 1))
        # The pixel is returned, too: decoding for nobody's use is pruned.
        return row, image[0, 0, 0]

    # Its own graph, so that it can be called wherever a graph is being built.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        dataset = tf.data.Dataset.range(len(table))
        dataset = dataset.map(attempt, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
        batch = tf.compat.v1.data.make_one_shot_iterator(dataset.batch(1024)).get_next()
        good = [np.zeros(0, np.int64)]
        while True:
            try:
                good.append(session.run(batch)[0])
            except tf.errors.OutOfRangeError:
                break
    return np.setdiff1d(np.arange(len(table)), np.concatenate(good))


def usable_images(table, on_bad_image="error"):
    """The table as `on_bad_image` wants it; call it before the sampler is made.

    Args:
      on_bad_image: 'error' returns the table untouched and at no cost: a bad file ends the run when
        its turn comes, with its name. 'skip' decodes every file once, leaves out the rows that fail
        and warns with their number and the first names.

    Raises:
      ValueError: another policy, or no picture is left.
    """
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image must be 'error' or 'skip', not {on_bad_image!r}")
    if on_bad_image == "error":
        return table
    bad = unreadable_images(table)
    if not bad.size:
        return table
    names = "; ".join(
        f"{path}: {_reason(path).decode(errors='replace')}"
        for path in table.paths[bad[:3]].tolist()
    )
    more = "" if bad.size <= 3 else ", ..."
    if bad.size == len(table):
        raise ValueError(f"none of the {bad.size} pictures can be read ({names}{more})")
    warnings.warn(
        f"{bad.size} of {len(table)} pictures cannot be read and are skipped ({names}{more})",
        stacklevel=2,
    )
    return table.select(np.setdiff1d(np.arange(len(table)), bad))
