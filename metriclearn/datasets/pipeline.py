"""From a product table to batches: decoding in parallel, in an order fixed by (seed, step).

A batch is a pure function of (seed, step): its rows come from `sample(step)`, its augmentation from
seeds made of (seed, step, place in the batch). So a run resumes exactly from its step alone,
whatever the number of threads.

A dataset belongs to the graph in which it is built: call these functions under the
`with graph.as_default():` that trains, or eagerly.
"""

import os
import threading
import warnings

import numpy as np
import tensorflow as tf

from metriclearn import augment as augmentation
from metriclearn.datasets import images as pictures

# With a crop, pictures keep twice the target's size: a window of half a side is still no smaller
# than the target.
CROP_RESERVE = 2
CROP_STREAM = 1 << 40  # tells the seeds of windows from those of `augment`
# Tensors of a graph travel in one protocol buffer of at most 2 GiB.
MAX_GRAPH_BYTES = 1 << 30
# One black pixel as a GIF, decoded where no file is wanted.
BLANK = bytes.fromhex("474946383761010001008000000000000000002c000000000100010000080400010404003b")


class DecodedCache:
    """Decoded pictures kept in memory, in whatever order they are first asked for.

    Pictures are kept as decoded (uint8, reduced to the size needed, not yet cropped) until `budget`
    bytes are used; the others are decoded each time. Nothing is evicted: under random access a
    fixed part is as good as any. One cache serves one table at one size.

    Attributes:
      budget: bytes of pixels kept at most.
      bytes: bytes kept now.
    """

    def __init__(self, budget):
        self.budget = budget
        self.bytes = 0
        self._kept = {}
        self._lock = threading.Lock()

    def __len__(self):
        return len(self._kept)

    def get(self, row, channels):
        """(uint8 [h, w, channels], int32 ratio); [0, 0, channels] when it is not kept."""
        absent = np.zeros((0, 0, channels), np.uint8), np.int32(1)
        return self._kept.get(int(row), absent)

    def put(self, row, image, ratio):
        """Keeps the picture if the budget allows; returns it."""
        with self._lock:
            if int(row) not in self._kept and self.bytes + image.nbytes <= self.budget:
                # The array given is a view of a tensor that the runtime frees.
                self._kept[int(row)] = image.copy(), np.int32(ratio)
                self.bytes += image.nbytes
        return image


def _decode_cached(cache, row, channels, decode):
    """(image, ratio) from the cache, else from `decode()`, kept for the next time."""
    kept, ratio = tf.numpy_function(
        lambda r: cache.get(r, channels), [row], [tf.uint8, tf.int32], stateful=False
    )
    kept.set_shape([None, None, channels])
    ratio.set_shape([])

    def miss():
        image, reduced = decode()
        # Through the function, not beside it: an op that nothing reads is pruned.
        image = tf.numpy_function(cache.put, [row, image, reduced], tf.uint8, stateful=False)
        return tf.ensure_shape(image, [None, None, channels]), reduced

    return tf.cond(tf.size(kept) > 0, lambda: (kept, ratio), miss)


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
            head = file.read(16)
    except OSError as error:
        return (error.strerror or str(error)).encode()
    if not head:
        return b"the file is empty"
    known = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")
    if not head.startswith(known):
        return b"not a JPEG, PNG, GIF, BMP or WebP file"
    return b"the file is truncated or damaged"


def _source(table, size, channels, crop, cache):
    """A function (row, seed) -> uint8 [*size or any, channels], still to be resized."""
    boxes = np.zeros((len(table), 4), np.int32) if table.boxes is None else table.boxes
    least = size if crop is None else tuple(CROP_RESERVE * side for side in size)

    def windowed(seed):
        # Not the augmentation's own numbers again: a flip must not go with the crop's place.
        own = tf.bitwise.bitwise_xor(seed, [CROP_STREAM, 0])
        return lambda height, width, box: crop(height, width, box, own)

    def from_memory(row, seed):
        image = tf.constant(table.images)[row]
        if crop is None:
            return image
        return pictures.cut(image, 1, windowed(seed), tf.constant(boxes)[row])

    def from_file(row, seed):
        def decode(window=None, box=None):
            # The row after the last closes a batch: nothing is read for it.
            data = tf.cond(
                row < len(table),
                lambda: tf.io.read_file(tf.constant(table.paths)[row]),
                lambda: tf.constant(BLANK),
            )
            return pictures.decode(data, channels=channels, least=least, window=window, box=box)

        box = tf.constant(np.concatenate([boxes, np.zeros((1, 4), np.int32)]))[row]
        if cache is None:
            return decode(None if crop is None else windowed(seed), box)[0]
        image, ratio = _decode_cached(cache, row, channels, decode)
        return image if crop is None else pictures.cut(image, ratio, windowed(seed), box)

    return from_memory if table.images is not None else from_file


def _batches(table, steps, rows_of, count, *, size, channels, crop, seed, method, cache):
    """Batches of the rows that `rows_of(step)` gives for each of `steps`, decoded in parallel.

    A decoding op cannot say which file it was given. So the stream of decoded pictures drops what
    fails (`ignore_errors`), and each batch is compared with the rows that were wanted: the one that
    is missing is named. One blank picture closes each batch, so that a batch of nothing but
    failures comes through as well.
    """
    parallel = tf.data.AUTOTUNE
    if cache is not None and table.images is not None:
        raise ValueError("the pixels are in memory: a cache of decoded pictures has no use")

    def checked_rows(step):
        rows = tf.cast(rows_of(step), tf.int64)
        message = "the sampler gave a row that the table does not have"
        inside = tf.reduce_all((rows >= 0) & (rows < len(table)))
        with tf.control_dependencies([tf.debugging.Assert(inside, [message, rows])]):
            return tf.identity(rows)

    wanted = steps.map(checked_rows)
    if table.images is not None and table.images.shape[1:3] == size and not crop:
        return wanted.map(
            lambda rows: {
                "image": tf.gather(tf.constant(table.images), rows),
                **_columns(table, rows),
            },
            num_parallel_calls=parallel,
            deterministic=True,
        )

    source = _source(table, size, channels, crop, cache)
    closing = int(table.images is None)

    def items(step):
        rows = tf.cast(rows_of(step), tf.int64)
        rows = tf.concat([rows, tf.fill([closing], np.int64(len(table)))], 0)
        index = tf.range(tf.size(rows, out_type=tf.int64))
        # Counter-based generators mix both words; a batch has far fewer than 2^24 pictures.
        seeds = tf.stack([tf.fill(tf.shape(index), np.int64(seed)), step * (1 << 24) + index], 1)
        return index, rows, seeds

    def decoded(index, row, key):
        image = pictures.resize(source(row, key), size, method)
        return index, tf.ensure_shape(image, [*size, channels])

    stream = steps.map(items).unbatch()
    stream = stream.map(decoded, num_parallel_calls=parallel, deterministic=True)
    if closing:
        stream = stream.ignore_errors()
    stream = stream.batch(count + closing)

    def complaint(row):
        path = tf.constant(table.paths)[row]
        parts = [
            "cannot read the picture ",
            path,
            ": ",
            tf.numpy_function(_reason, [path], tf.string),
        ]
        parts.append("; repair it, or set on_bad_image to 'skip' to leave such pictures out")
        return tf.strings.join(parts)

    def assembled(rows, batch):
        index, image = batch
        if closing:
            # In order, so the first place that holds another picture is the one that is missing.
            number = tf.size(rows, out_type=tf.int64)
            lost = tf.maximum(number + closing - tf.size(index, out_type=tf.int64), 0)
            index = tf.pad(index, [[0, lost]], constant_values=-1)[:number]
            good = tf.equal(index, tf.range(number))
            message = tf.cond(
                tf.reduce_all(good),
                lambda: tf.constant(""),
                lambda: complaint(rows[tf.argmin(tf.cast(good, tf.int32))]),
            )
            check = tf.debugging.Assert(tf.equal(message, ""), [message], summarize=-1)
            with tf.control_dependencies([check]):
                image = image[:-1]
        return {"image": image, **_columns(table, rows)}

    return tf.data.Dataset.zip((wanted, stream)).map(assembled)


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
      cache: None, or a DecodedCache; the batches are the same with it.
      prefetch: batches made ahead.

    Returns:
      A tf.data.Dataset of dicts: image uint8 [B, H, W, C], label int64 [B], id, product and
      category string [B].

    Raises:
      ValueError: an empty table, a sampler of unknown batch size, a size that is none. When it
        runs, tf.errors.InvalidArgumentError names a file that cannot be read or decoded.
    """
    size = _check_size(image_size)
    _check_pixels(table, channels)
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
        size=size,
        channels=channels,
        crop=crop,
        seed=seed,
        method=method,
        cache=cache,
    )
    dataset = dataset.map(lambda batch: _with_static_batch(batch, int(shape[0])))
    if augment is not None:
        dataset = _augmented(dataset, steps, augmentation.batched(augment), seed)
    return dataset.prefetch(prefetch)


def _augmented(dataset, steps, augment, seed):
    """Augments whole batches: on single pictures the ops would cost more than their work."""

    def change(step, batch):
        image = batch["image"]
        changed = augment(image, augmentation.seeds_of(seed, step, image.shape[0]))
        return batch | {"image": tf.ensure_shape(changed, image.shape)}

    dataset = tf.data.Dataset.zip((steps, dataset))
    return dataset.map(change, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _with_static_batch(batch, count):
    return {k: tf.ensure_shape(v, [count, *v.shape[1:]]) for k, v in batch.items()}


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
      A finite tf.data.Dataset of dicts.
    """
    size = _check_size(image_size)
    _check_pixels(table, channels)
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
        size=size,
        channels=channels,
        crop=crop,
        seed=0,
        method=method,
        cache=None,
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
