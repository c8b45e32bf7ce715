"""From a product table to batches: parallel decoding, in an order fixed by (seed, step).

A batch is a pure function of (seed, step): its rows come from `sample(step)`, and the seeds of its
augmentation from (seed, step, place in the batch). A run therefore resumes exactly from its step,
with any number of threads.

A dataset belongs to the graph in which it is built: call these functions under the
`with graph.as_default():` that trains, or eagerly.
"""

import dataclasses
import functools
import os
import stat
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from metriclearn import augment as augmentation
from metriclearn.datasets import image_files, images
from metriclearn.datasets.cache import DecodedCache

__all__ = [
    "DecodedCache",
    "eval_batches",
    "train_batches",
    "unreadable_images",
    "usable_images",
]

CROP_STREAM = 1 << 40  # keeps the seeds of windows apart from those of `augment`
CANVAS = 1 << 24  # pixels up to which a batch's windows are resized in one piece, in any shape
REMEDY = "; repair it, or set on_bad_image to 'skip' to skip such images"
COLUMNS = ("label", "id", "product", "category")


def _check_size(image_size):
    height, width = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
    if int(height) != height or int(width) != width or not (height > 0 and width > 0):
        raise ValueError(f"image_size must be a number of pixels or two, not {image_size!r}")
    return int(height), int(width)


def _check_pixels(table, channels):
    if table.images is not None and table.images.shape[3] != channels:
        raise ValueError(
            f"the images have {table.images.shape[3]} channels; channels={channels} was asked for"
        )


def _columns(table, rows, names):
    """The columns of a batch beside its pixels, {name: [B]}.

    They are looked up outside the graph: constants would make it as large as the table.
    """
    columns = {"label": table.labels, "id": table.ids, "product": table.products}
    columns |= {"category": table.categories, "path": table.paths}
    columns = [columns[name] for name in names]
    found = tf.numpy_function(
        lambda r: [column[r] for column in columns], [rows], [*map(_dtype, columns)], stateful=False
    )
    return {
        name: tf.ensure_shape(part, rows.shape) for name, part in zip(names, found, strict=True)
    }


def _dtype(column):
    return tf.string if column.dtype.kind in "UO" else tf.as_dtype(column.dtype)


def look_up(column, rows):
    """column[rows] of a NumPy column, [N, ...], as a tensor [B, ...]."""
    found = tf.numpy_function(lambda r: column[r], [rows], _dtype(column), stateful=False)
    return tf.ensure_shape(found, [*rows.shape, *column.shape[1:]])


def _read(table, rows):
    """(paths, string [B]; the files' bytes, string [B]; int32 [B, 2], sides of upright JPEGs).

    Bytes are '' for a file that cannot be read, sides are 0 for what is no upright JPEG: decoding
    it says what is wrong. In Python for the whole batch, which takes less time than ops per image.
    """

    def read(rows):
        paths = table.paths[rows]
        data = [_content(path) for path in paths]
        sides = [image_files.upright_jpeg_sides(content) for content in data]
        return paths, np.array(data, object), np.array(sides, np.int32).reshape(-1, 2)

    paths, data, sides = tf.numpy_function(
        read, [rows], [tf.string, tf.string, tf.int32], stateful=False
    )
    count = rows.shape[0]
    return (
        tf.ensure_shape(paths, [count]),
        tf.ensure_shape(data, [count]),
        tf.ensure_shape(sides, [count, 2]),
    )


def _content(path):
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""  # opening a pipe would wait forever
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError):
        return b""


def complaint(path: bytes | str, max_pixels: int = images.MAX_PIXELS) -> str:
    """What is wrong with the image file at a path that cannot be decoded."""
    name, reason = os.fsencode(path).decode(errors="replace"), "the file is truncated or damaged"
    try:
        images.read(os.fsdecode(path), max_pixels=max_pixels)
    except ValueError as error:
        reason = str(error)
    return f"cannot read the image {name}: {reason}"


def _each(function, items, most, inline=False):
    """(places int64 [k], results [k, ...]) of the items, at most `most`, that do not fail.

    The dataset within the function can drop an image that fails, and lets one thread make a whole
    batch, which costs less than passing images between threads. Results of unequal shapes are
    padded to the largest. inline: the function has no control flow and runs op by op, which takes
    an eighth less time for small images than TensorFlow's usual executor.
    """
    places = tf.range(tf.shape(items[0], out_type=tf.int64)[0])
    results = tf.data.Dataset.from_tensor_slices((places, items))
    results = _map(results, lambda place, item: (place, function(*item)), inline).ignore_errors()
    # A dummy element keeps the batch non-empty if all fail; it is dropped below.
    last = tf.nest.map_structure(
        lambda spec: tf.zeros([side or 0 for side in spec.shape], spec.dtype), results.element_spec
    )
    results = results.concatenate(tf.data.Dataset.from_tensors(last)).padded_batch(most + 1)
    return tf.nest.map_structure(lambda every: every[:-1], results.get_single_element())


def _map(dataset, function, inline):
    """dataset.map(function); inline: as in `_each`, for which Dataset.map has no argument."""
    if not inline:
        return dataset.map(function)
    traced = tf.function(function, autograph=False).get_concrete_function(*dataset.element_spec)
    spec = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), traced.structured_outputs
    )
    parts = tf.nest.flatten(spec)
    found = tf.raw_ops.MapDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        other_arguments=traced.captured_inputs,
        f=traced,
        output_types=[part.dtype for part in parts],
        output_shapes=[part.shape for part in parts],
        use_inter_op_parallelism=False,
    )
    return tf.data.experimental.from_variant(found, spec)


def _complaints(paths, max_pixels):
    """string [M]: for each of the paths, what is wrong with the file."""

    def complain(values):
        return np.array([complaint(p, max_pixels).encode(errors="replace") for p in values], object)

    return tf.ensure_shape(tf.numpy_function(complain, [paths], tf.string), [None])


def _every(found, paths, max_pixels):
    """The results [B, ...] of (places, results); an error names the first file that fails.

    A decoding op does not know its file, hence the comparison of places.
    """
    places, results = found
    count = tf.size(paths, out_type=tf.int64)
    # In order, so the first place that holds another image is the one that is missing.
    places = tf.pad(places, [[0, count - tf.size(places, out_type=tf.int64)]], constant_values=-1)
    good = tf.equal(places, tf.range(count))
    message = tf.cond(
        tf.reduce_all(good),
        lambda: tf.constant(""),
        lambda: (
            _complaints(paths[tf.argmin(tf.cast(good, tf.int32))][None], max_pixels)[0] + REMEDY
        ),
    )
    check = tf.debugging.Assert(tf.equal(message, ""), [message], summarize=-1)
    with tf.control_dependencies([check]):
        return tf.nest.map_structure(tf.identity, results)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """How a table's images are loaded; arguments as in `train_batches`, most: the batch size."""

    most: int
    size: tuple[int, int]
    channels: int
    crop: Callable | None
    method: str
    cache: DecodedCache | None
    max_pixels: int

    @property
    def least(self):
        """(height, width) that a reduced image keeps."""
        return least(self.size, self.crop)

    def window(self, numbers):
        """The function that places an image's window, given the image's random numbers."""
        place = getattr(self.crop, "place", self.crop)
        return place and (lambda height, width, box: place(height, width, box, numbers))

    def decode(self, data, numbers=None, box=None):
        """(a window of one file, uint8 [h, w, C], the ratio); the whole if numbers is None."""
        return images.decode(
            data,
            channels=self.channels,
            least=self.least,
            window=None if numbers is None else self.window(numbers),
            box=box,
            max_pixels=self.max_pixels,
        )


def least(size, crop):
    """(height, width) that a reduced image keeps before its resize to a size."""
    return size if crop is None else tuple(image_files.CROP_RESERVE * side for side in size)


def _loader(table, s):
    """A function (rows int64 [B], seeds int64 [B, 2]) -> uint8 [B, *size, channels].

    Args:
      table: a ProductTable.
      s: `_Settings`.
    """
    if table.images is not None and table.images.shape[1:3] == s.size and not s.crop:
        return lambda rows, seeds: look_up(table.images, rows)

    def placed(rows, seeds):
        """What a window depends on beside the image: random numbers, and boxes if there are any."""
        # Crops and flips must be independent, so the augmentation's own numbers are not reused. A
        # crop whose numbers can be drawn for a whole batch has them drawn here, before decoding.
        draws = getattr(s.crop, "draws", tf.identity)
        numbers = draws(tf.bitwise.bitwise_xor(seeds, [CROP_STREAM, 0]))
        return (numbers,) if table.boxes is None else (numbers, look_up(table.boxes, rows))

    def from_memory(rows, seeds):
        def one(image, numbers, box=None):
            return images.resize(images.cut(image, s.window(numbers), box), s.size, s.method)

        return _each(one, (look_up(table.images, rows), *placed(rows, seeds)), s.most)[1]

    def from_files(rows, seeds):
        def planned(ratio):
            def decode(data, part, begin, kept, *_):
                image = tf.io.decode_and_crop_jpeg(data, part, channels=s.channels, ratio=ratio)
                return images.resize(tf.slice(image, begin, kept), s.size, s.method)

            return decode

        def alone(data, *given):
            return images.resize(s.decode(data, *given)[0], s.size, s.method)

        def other(data, part, begin, kept, *given):
            return alone(data, *given)

        def unlike(kind, *items):
            return tf.switch_case(kind, [functools.partial(way, *items) for way in ways])

        (paths, data, sides), given = _read(table, rows), placed(rows, seeds)
        if s.crop and not hasattr(s.crop, "place"):  # it takes one image, and one with a size
            return _every(_each(alone, (data, *given), s.most), paths, s.max_pixels)
        # Planned for the batch, then decoded one by one: ops on single numbers take as long as a
        # small image.
        plan = images.plan_jpeg(sides, s.least, s.window(given[0]), *given[1:] or [None])
        plain = tf.reduce_all(sides > 0, -1) & images.small_enough(sides, s.max_pixels)
        ways = [*map(planned, images.ratios(s.least)), other]
        kinds, items = tf.where(plain, plan[0], len(ways) - 1), (data, *plan[1:], *given)
        alike = [lambda w=way: _each(w, items, s.most, inline=True) for way in ways[:-1]]
        which = tf.where(tf.reduce_all(tf.equal(kinds, kinds[0])), kinds[0], len(alike))
        found = tf.switch_case(which, [*alike, lambda: _each(unlike, (kinds, *items), s.most)])
        return _every(found, paths, s.max_pixels)

    def from_cache(rows, seeds):
        cache = s.cache

        def decode(data, row, ticket):
            image, ratio = s.decode(data)
            return tf.ensure_shape(
                tf.numpy_function(cache.add, [ticket, row, image, ratio], tf.int32), [3]
            )

        def window(size, numbers, box=None):
            return tf.concat(images.place(s.window(numbers), size[:2], size[2], box), 0)

        def one(row, window):
            image = tf.numpy_function(cache.cut_one, [ticket, row, window], tf.uint8)
            image = tf.ensure_shape(image, [None, None, s.channels])
            return images.resize(image, s.size, s.method)

        ticket, sizes = tf.numpy_function(cache.sizes, [rows], [tf.int64, tf.int32])
        ticket, sizes = tf.ensure_shape(ticket, []), tf.ensure_shape(sizes, [None, 3])
        new = tf.where(tf.equal(sizes[:, 0], 0))
        missing = tf.gather_nd(rows, new)
        tickets = tf.fill(tf.shape(missing), ticket)
        paths, data, _ = _read(table, missing)
        found = _every(_each(decode, (data, missing, tickets), s.most), paths, s.max_pixels)
        sizes = tf.tensor_scatter_nd_update(sizes, new, found)
        given = placed(rows, seeds)
        if table.boxes is None and hasattr(s.crop, "place"):
            windows = tf.concat(
                images.place(s.window(given[0]), sizes[:, :2], sizes[:, 2], None), -1
            )
        else:
            windows = _each(window, (sizes, *given), s.most)[1]

        def together():
            canvas = tf.numpy_function(cache.cut, [ticket, rows, windows], tf.uint8)
            canvas = tf.ensure_shape(canvas, [None, None, None, s.channels])
            return images.resize_windows(canvas, windows[:, 2:], s.size, s.method)

        # Very unlike windows would make a canvas far larger than all of them.
        tall = tf.cast(tf.reduce_max(windows[:, 2:], 0), tf.int64)
        canvas = tf.size(rows, out_type=tf.int64) * tf.reduce_prod(tall)
        pixels = tf.reduce_sum(tf.reduce_prod(tf.cast(windows[:, 2:], tf.int64), -1))
        pixels_of = tf.cond(
            canvas <= 8 * pixels + CANVAS,
            together,
            lambda: _each(one, (rows, windows), s.most)[1],
        )
        with tf.control_dependencies([pixels_of]):
            done = tf.numpy_function(cache.close, [ticket], tf.int64)
        with tf.control_dependencies([done]):
            return tf.identity(pixels_of)

    if table.images is not None:
        return from_memory
    return from_files if s.cache is None else from_cache


def _readable(table, rows, s):
    """(rows that can be decoded, their images, what is wrong with the others, string [M])."""

    def one(data, box=None):
        return images.resize(s.decode(data, tf.zeros([2], tf.int64), box)[0], s.size, s.method)

    paths, data, _ = _read(table, rows)
    given = (data,) if table.boxes is None else (data, look_up(table.boxes, rows))
    places, found = _each(one, given, s.most)
    bad = tf.sets.difference(tf.range(tf.size(rows, out_type=tf.int64))[None], places[None]).values
    return tf.gather(rows, places), found, _complaints(tf.gather(paths, bad), s.max_pixels)


def part_of(part, *tensors):
    """The rows of one worker, of tensors [B, ...] that all workers know.

    Args:
      part: (number of the worker, number of workers); B is a multiple of the latter.

    Returns:
      A list of tensors [B / workers, ...]: the parts are consecutive.

    Raises:
      ValueError: the rows cannot be divided so.
    """
    own, workers = part
    rows = tensors[0].shape[0]
    if not 0 <= own < workers or rows % workers:
        raise ValueError(f"a batch of {rows} has no part {own} of {workers} equal ones")
    size = rows // workers
    return [tensor[own * size : (own + 1) * size] for tensor in tensors]


def _batches(
    table,
    steps,
    rows_of,
    settings,
    *,
    seed=0,
    augment=None,
    columns=COLUMNS,
    skip=False,
    part=(0, 1),
):
    """Batches of the rows that `rows_of(step)` gives for each of `steps`.

    columns: names for `_columns`. skip: drop images that cannot be read, and say so in `skipped`.
    part: see `part_of`.
    """
    _check_pixels(table, settings.channels)
    if settings.cache is not None and table.images is not None:
        raise ValueError("the pixels are in memory: a cache of decoded images has no use")
    load = _loader(table, settings)

    def batch(step):
        rows = tf.cast(rows_of(step), tf.int64)
        message = "the sampler gave a row that the table does not have"
        inside = tf.reduce_all((rows >= 0) & (rows < len(table)))
        with tf.control_dependencies([tf.debugging.Assert(inside, [message, rows])]):
            rows = tf.identity(rows)
        seeds = augmentation.seeds_of(seed, step, tf.size(rows))
        if part[1] > 1:
            rows, seeds = part_of(part, rows, seeds)
        notes = {}
        if skip and table.images is None:
            rows, image, notes["skipped"] = _readable(table, rows, settings)
        else:
            image = load(rows, seeds)
        image = tf.ensure_shape(image, [*rows.shape, *settings.size, settings.channels])
        if augment is not None:
            # Whole batches: on single images the ops would cost more than their work.
            image = tf.ensure_shape(augmentation.batched(augment)(image, seeds), image.shape)
        return {"image": image, **_columns(table, rows, columns), **notes}

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
    max_pixels=images.MAX_PIXELS,
    prefetch=2,
    part=(0, 1),
):
    """Endless batches of training images, the batch of a step a pure function of (seed, step).

    Args:
      table: a ProductTable.
      sample: function, int64 scalar step -> int64 [B] rows of the table, B known statically; pure
        (see `metriclearn.samplers`).
      start_step: the step of the first batch.
      image_size: pixels, one number or (height, width).
      channels: 3 or 1.
      crop: None, or a function (height, width, box int32 [4], seed int64 [2]) -> int32 [4] as
        y, x, h, w, the window to keep before the resize (`augment.random_window`, ...). For
        JPEG only the window is decoded.
      augment: None, or a function (uint8 [H, W, C], seed int64 [2]) -> uint8 [H, W, C], stateless.
        Each (seed, step, place in the batch) has its own seed. It runs on whole batches
        (`augment.batched`).
      seed: an integer.
      method: of `tf.image.resize`.
      cache: None, or a DecodedCache. Batches do not depend on what it holds. Against those made
        without it, a value may differ by one gray level (see `images.resize_windows`).
      prefetch: batches made ahead.
      part: (number of this worker, number of workers) that share each batch: only this one's
        images are read. Joined in order, the parts are the batch.

    Returns:
      A tf.data.Dataset of dicts: image uint8 [B, H, W, C], label int64 [B], id, product and
      category string [B].

    Raises:
      ValueError: an empty table, a sampler of unknown batch size, an invalid size. When it
        runs, tf.errors.InvalidArgumentError names a file that cannot be read or decoded.
    """
    if not len(table):
        raise ValueError("the table of training images is empty")
    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max >> 24)
    # Not by `steps.map`, which would add the sampler's constants to the graph once more.
    traced = tf.function(sample).get_concrete_function(tf.TensorSpec([], tf.int64))
    shape = traced.structured_outputs.shape
    if shape.rank != 1 or shape[0] is None:
        raise ValueError(f"sample(step) must return row indices of static shape [B], not {shape}")
    size = _check_size(image_size)
    settings = _Settings(int(shape[0]), size, channels, crop, method, cache, max_pixels)
    part_of(part, np.empty(shape[0]))  # an error of the batch's size shows before training
    dataset = _batches(table, steps, sample, settings, seed=seed, augment=augment, part=part)
    return dataset.prefetch(prefetch)


def eval_batches(
    table,
    *,
    batch_size,
    image_size,
    channels=3,
    crop=None,
    method="bilinear",
    max_pixels=images.MAX_PIXELS,
    on_bad_image="error",
    start_batch=0,
    prefetch=2,
):
    """Every image once, in the table's order; the last batch may be short.

    Args:
      table: a ProductTable.
      batch_size: images per batch.
      image_size, channels, method, max_pixels, prefetch: as in `train_batches`.
      crop: as in `train_batches`, a deterministic one (`augment.box_window`).
      on_bad_image: 'error' ends the run, naming the file. 'skip' drops the image from its batch,
        which also holds `skipped`, string [M]: a line for each dropped image of that batch.
      start_batch: the first batch, to resume a pass.

    Returns:
      A finite tf.data.Dataset of dicts as in `train_batches`, and path, string [B], '' for images
      in memory.

    Raises:
      ValueError, tf.errors.InvalidArgumentError: as in `train_batches`.
    """
    if not len(table):
        raise ValueError("the table of images is empty")
    _check_policy(on_bad_image)
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size!r}")

    def rows(step):
        return tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, len(table)))

    settings = _Settings(
        batch_size, _check_size(image_size), channels, crop, method, None, max_pixels
    )
    steps = tf.data.Dataset.range(start_batch, -(-len(table) // batch_size))
    skip = on_bad_image == "skip"
    dataset = _batches(table, steps, rows, settings, columns=(*COLUMNS, "path"), skip=skip)
    return dataset.prefetch(prefetch)


def _check_policy(on_bad_image):
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image must be 'error' or 'skip', not {on_bad_image!r}")


def unreadable_images(table, max_pixels=images.MAX_PIXELS):
    """Decodes every file once, as cheaply as possible, and finds those that fail.

    Returns:
      int64 [M] rows of the table whose file cannot be read or decoded.
    """
    if table.images is not None or not len(table):
        return np.zeros(0, np.int64)

    def attempt(row):
        data = _read(table, row[None])[1][0]
        image, _ = images.decode(data, least=(1, 1), max_pixels=max_pixels)
        # Return one pixel so that the decode is not pruned.
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


def usable_images(table, on_bad_image="error", max_pixels=images.MAX_PIXELS):
    """Applies `on_bad_image` to a table; call it before making the sampler.

    Args:
      on_bad_image: 'error' returns the table unchanged: a bad file ends the run when it is read,
        with its name. 'skip' decodes every file once, drops the rows that fail and warns with their
        number and the first names.

    Raises:
      ValueError: another policy, or no image is left.
    """
    _check_policy(on_bad_image)
    if on_bad_image == "error":
        return table
    bad = unreadable_images(table, max_pixels)
    if not bad.size:
        return table
    lines = (complaint(path, max_pixels) for path in table.paths[bad[:3]].tolist())
    names = "; ".join(line.removeprefix("cannot read the image ") for line in lines)
    more = "" if bad.size <= 3 else ", ..."
    if bad.size == len(table):
        raise ValueError(f"none of the {bad.size} images can be read ({names}{more})")
    warnings.warn(
        f"{bad.size} of {len(table)} images cannot be read and are skipped ({names}{more})",
        stacklevel=2,
    )
    return table.select(np.setdiff1d(np.arange(len(table)), bad))
