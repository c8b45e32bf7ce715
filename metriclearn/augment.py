"""Augmentation of uint8 images: stateless, in tf.data per image or on the device per batch.

Every function takes its randomness from `seed`, int64 or int32 [2], only: the same seed gives the
same image. Functions on one image take and return uint8 [H, W, C]; `batched(augment)` makes one for
a whole batch, for the device. Windows (`random_window`, `window_near_box`, `box_window`,
`center_window`) choose where to crop *before* the file is decoded, so that only the window is
decoded (see `datasets.pipeline.train_batches`, argument `crop`).

    augment = compose(random_flip, random_colour(), random_erasing(probability=0.5))
    train_batches(table, sample, image_size=128, crop=random_window(), augment=augment, seed=1)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from metriclearn.hashing import GAMMA, mix, right_shift

RESIZE_METHODS = ("bilinear", "nearest", "bicubic", "area")

# (uint8 [H, W, C], seed [2]) -> uint8 [H, W, C]. Some carry attributes, such as `batch`.
Augmentation = Any
# (height, width, box int32 [4], seed [2]) -> int32 [4] y, x, h, w.
Window = Any

# Odd multipliers and increments of a congruential step in 64 bits (Knuth's MMIX, and L'Ecuyer's).
_MULTIPLIER = np.asarray([6364136223846793005, 3202034522624059733], np.int64)
_INCREMENT = np.asarray([1442695040888963407, 4354685564936845355], np.int64)


def _fold(seed, number):
    """Another int64 [2] seed, for the number-th use of one seed.

    A congruential step, not a sum: seeds of successive images differ by one, and adding one would
    make the second op of an image repeat the first op of the next. The generator behind
    `stateless_*` mixes the rest; drawing the seed from it would cost more than all other ops here.
    """
    with np.errstate(over="ignore"):
        step = _INCREMENT * np.int64(2 * number + 1)
    return tf.cast(seed, tf.int64) * _MULTIPLIER + step


def _uniform(seed, shape, low, high):
    """float32, uniform in [low, high)."""
    # One op: `tf.random.stateless_uniform` is four, and tiny ops dominate the time per image.
    draw = tf.raw_ops.StatelessRandomUniform(shape=shape, seed=seed, dtype=tf.float32)
    return low + (high - low) * draw


def _draws(seeds, count):
    """float32 [B, count], uniform in [0, 1); row i depends on seeds[i] (int64 [B, 2]) only.

    The stateless ops of TensorFlow take one seed; this takes a batch of them in a few ops.
    """
    words = tf.cast(seeds, tf.uint64)
    state = mix(mix(words[:, 0]) + words[:, 1])
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA)
    bits = right_shift(mix(state[:, None] + steps), 40)
    return tf.cast(bits, tf.float32) * 2.0**-24


def _one_pass(function):
    """Compiles a function of pixels by XLA: one pass over them instead of one per op.

    What is computed once per image stays outside: fused, it would be computed per pixel. XLA
    compiles a program per shape, so this applies only where the shape is known.
    """
    compiled = tf.function(function, jit_compile=True)

    def run(images, *others):
        known = images.shape[1:].is_fully_defined()
        return (compiled if known else function)(images, *others)

    return run


def _coin(seed, probability):
    return _uniform(seed, [], 0.0, 1.0) < probability


def _to_uint8(image):
    """Rounds and saturates; the cast truncates, so half is added first."""
    return tf.cast(
        tf.raw_ops.ClipByValue(t=image + 0.5, clip_value_min=0.0, clip_value_max=255.5), tf.uint8
    )


def compose(*functions: Augmentation) -> Augmentation:
    """Chains augmentations, each with a seed of its own.

    Args:
        functions: each (uint8 [H, W, C], seed int64 [2]) -> uint8 [H, W, C].

    Returns:
        A function of the same signature.
    """

    def augment(image, seed):
        for number, function in enumerate(functions):
            image = function(image, _fold(seed, number))
        return image

    def batch(images, seeds):
        for number, function in enumerate(functions):
            images = function.batch(images, _fold(seeds, number))
        return images

    augment.parts = functions
    if all(hasattr(function, "batch") for function in functions):
        augment.batch = batch
    return augment


def batched(augment: Augmentation) -> Augmentation:
    """Turns an augmentation of one image into one graph for a batch.

    Image i depends on seeds[i] only, so a batch split over devices gives the same images. If the
    function has an attribute `batch` with the signature below, that is used; otherwise the function
    is mapped over the images.

    Args:
        augment: (uint8 [H, W, C], seed int64 [2]) -> uint8 [H, W, C].

    Returns:
        (uint8 [B, H, W, C], seeds int64 [B, 2]) -> uint8 [B, H, W, C]. Calling it raises ValueError
        if `augment` returns another dtype than uint8.
    """
    parts = getattr(augment, "parts", None)
    if parts is not None and not hasattr(augment, "batch"):

        def one_by_one(images, seeds):
            for number, part in enumerate(parts):
                images = batched(part)(images, _fold(seeds, number))
            return images

        return one_by_one

    def mapped(images, seeds):
        def one(item):
            image = augment(*item)
            if image.dtype != tf.uint8:
                raise ValueError(f"augment must return uint8, not {image.dtype.name}")
            return image

        # Random ops have no batched kernel; map_fn runs them side by side.
        return tf.map_fn(
            one,
            (images, seeds),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
            parallel_iterations=32,
        )

    return getattr(augment, "batch", mapped)


def seeds_of(seed: int | tf.Tensor, step: int | tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Returns int64 [count, 2], the seeds of a step's images that the input pipeline uses."""
    number = tf.cast(step, tf.int64) * (1 << 24) + tf.range(count, dtype=tf.int64)
    return tf.stack([tf.fill(tf.shape(number), tf.cast(seed, tf.int64)), number], 1)


# Windows: (height, width, box int32 [4] x1 y1 x2 y2, seed) -> int32 [4] y, x, h, w.


def random_window(low: float = 0.5, high: float = 1.0, square: bool = False) -> Window:
    """Crops a random share of the sides, anywhere in the image.

    Height and width are the same share of the image's, uniform in [low, high], so the aspect ratio
    is kept. With `square`, both are that share of the shorter side.

    Raises:
        ValueError: unless 0 < low <= high <= 1.
    """
    _check_range("random_window", low, high, 0.0, 1.0)

    def place(height, width, box, draws):
        del box
        sides = tf.stack([height, width], -1)
        whole = tf.cast(sides, tf.float32)
        if square:
            whole = tf.minimum(whole, tf.reverse(whole, [-1]))
        share, corner = draws[..., :1], draws[..., 1:]
        size = tf.cast(tf.round(whole * (low + (high - low) * share)), tf.int32)
        size = tf.maximum(size, 1)
        return tf.concat([_between(corner, sides - size), size], -1)

    def window(height, width, box, seed):
        return place(height, width, box, _draws(seed[None], 3)[0])

    # `place` works for one image or a batch, so that the draws of a batch are made together.
    window.place = place
    window.draws = lambda seeds: _draws(seeds, 3)
    return window


def _between(share, most):
    """int32 uniform in 0..most from a uniform share in [0, 1)."""
    return tf.minimum(tf.cast(share * tf.cast(most + 1, tf.float32), tf.int32), most)


def window_near_box(jitter: float = 0.1, margin: float = 0.1) -> Window:
    """Crops near a bounding box: each edge moves by its own random share of the box's side.

    An edge lies `margin` outside the box, plus a uniform share in [-jitter, jitter]. An image
    without a box (all zeros) is cropped by `random_window()`.

    Raises:
        ValueError: a negative jitter, or one so large that the window could vanish.
    """
    if not 0 <= jitter < 0.5 + margin:
        raise ValueError(f"window_near_box: jitter={jitter} must be in [0, 0.5 + margin)")
    anywhere = random_window()

    def window(height, width, box, seed):
        moves = _uniform(seed, [4], -jitter, jitter)
        near = _around(box, height, width, margin, moves)
        return tf.cond(box[2] > box[0], lambda: near, lambda: anywhere(height, width, box, seed))

    return window


def box_window(margin: float = 0.0) -> Window:
    """Crops the bounding box widened by `margin` of its sides; the whole image without a box.

    Nothing is random: this is the window for evaluation.
    """

    def window(height, width, box, seed):
        del seed
        whole = tf.stack([0, 0, height, width])
        exact = _around(box, height, width, margin, tf.zeros([4]))
        return tf.cond(box[2] > box[0], lambda: exact, lambda: whole)

    return window


class Resizing(NamedTuple):
    """How images of any shape get the size that a network takes.

    Attributes:
      method: of `images.resize`, which may pad.
      share: of the sides that the window in the middle keeps, before the resize; of the longer
        side if the method pads.
      square: whether both sides of the window are that share of the shorter side; otherwise the
        aspect ratio is not kept, unless the method pads.
    """

    method: str = "bilinear"
    share: float = 1.0
    square: bool = False

    @property
    def window(self) -> Window | None:
        """The window; None if the whole image is resized, which is then reduced further before."""
        if self == RESIZING:
            return None
        return center_window(self.share, "longer" if "+pad=" in self.method else self.square)


RESIZING = Resizing()  # the usual


def center_window(share: float = 1.0, square: bool | str = True) -> Window:
    """Crops the middle of the image.

    Args:
        share: of the sides that are kept.
        square: both sides are that share of the shorter side; of the longer side with 'longer',
            where the shorter one is kept as it is if it is not as long.
    """
    _check_range("center_window", share, share, 0.0, 1.0)

    def window(height, width, box, seed):
        del box, seed
        sides = tf.stack([height, width])
        side = tf.reduce_max(sides) if square == "longer" else tf.reduce_min(sides)
        kept = tf.cast(side if square else sides, tf.float32) * share
        kept = tf.maximum(tf.cast(tf.round(kept), tf.int32) + tf.zeros_like(sides), 1)
        kept = tf.minimum(kept, sides)
        return tf.concat([(sides - kept) // 2, kept], 0)

    return window


def _around(box, height, width, margin, moves):
    x1, y1, x2, y2 = tf.unstack(tf.cast(box, tf.float32))
    wide, high = x2 - x1, y2 - y1
    left = x1 - wide * (margin + moves[0])
    top = y1 - high * (margin + moves[1])
    right = x2 + wide * (margin + moves[2])
    bottom = y2 + high * (margin + moves[3])
    limits = tf.cast(tf.stack([height, width, height, width]), tf.float32)
    edges = tf.clip_by_value(tf.stack([top, left, bottom, right]), 0.0, limits)
    top, left, bottom, right = tf.unstack(tf.cast(tf.round(edges), tf.int32))
    # A box outside the image leaves one pixel at its edge.
    top, left = tf.minimum(top, height - 1), tf.minimum(left, width - 1)
    return tf.stack([top, left, tf.maximum(bottom - top, 1), tf.maximum(right - left, 1)])


def _check_range(name, low, high, least, most):
    if not least < low <= high <= most:
        raise ValueError(
            f"{name}: low={low}, high={high} must satisfy {least} < low <= high <= {most}"
        )


# Images: (uint8 [H, W, C], seed) -> uint8 [H, W, C].


def random_crop(
    low: float = 0.5, high: float = 1.0, methods: Sequence[str] = ("bilinear",)
) -> Augmentation:
    """Crops a random window (`random_window`) of a decoded image and resizes it back.

    The resize method is drawn from `methods`: with several, the network sees the blur of each.
    """
    place = random_window(low, high)
    shrink_or_grow = random_resize(methods)

    def augment(image, seed):
        shape = tf.shape(image)
        y, x, h, w = tf.unstack(place(shape[0], shape[1], tf.zeros([4], tf.int32), _fold(seed, 0)))
        resized = shrink_or_grow(image[y : y + h, x : x + w], _fold(seed, 1), shape[:2])
        return tf.ensure_shape(resized, image.shape)

    return augment


def random_resize(methods: Sequence[str] = RESIZE_METHODS) -> Any:
    """Returns a function (image, seed, size) that resizes by a method drawn from `methods`.

    Raises:
        ValueError: no method, or one that `tf.image.resize` does not know.
    """
    known = tuple(vars(tf.image.ResizeMethod).values())
    for method in methods:
        if method not in known:
            raise ValueError(f"random_resize: unknown method {method!r}; see tf.image.ResizeMethod")
    if not methods:
        raise ValueError("random_resize: no method to choose from")

    def resize(image, seed, size):
        def by(method):
            return lambda: _to_uint8(tf.cast(tf.image.resize(image, size, method), tf.float32))

        choice = tf.random.stateless_uniform([], seed, 0, len(methods), tf.int32)
        return tf.switch_case(choice, [by(method) for method in methods])

    return resize


def random_flip(image: tf.Tensor, seed: tf.Tensor, probability: float = 0.5) -> tf.Tensor:
    """Mirrors uint8 [H, W, C] left to right with the given probability."""
    return _flip(image[None], seed[None], probability)[0]


def _flip(images, seeds, probability=0.5):
    return _mirror(images, _draws(seeds, 1)[:, :, None, None] < probability)


@_one_pass
def _mirror(images, chosen):
    return tf.where(chosen, tf.reverse(images, [2]), images)


random_flip.batch = _flip


def random_noise(deviation: float = 8.0) -> Augmentation:
    """Adds Gaussian noise; its standard deviation (gray levels) is uniform in [0, deviation].

    Raises:
        ValueError: a negative deviation.
    """
    if deviation < 0:
        raise ValueError(f"random_noise: deviation={deviation} must not be negative")

    def augment(image, seed):
        scale = _uniform(_fold(seed, 0), [], 0.0, deviation)
        noise = tf.random.stateless_normal(tf.shape(image), _fold(seed, 1))
        return _to_uint8(tf.cast(image, tf.float32) + scale * noise)

    return augment


# The luma and chroma axes of NTSC's YIQ: a hue shift rotates the chroma plane.
_RGB_TO_YIQ = np.asarray(
    [(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], np.float32
)


def _colour_basis():
    """float32 [9, 3]: the row-vector color matrix is this times (1, c cos t, c sin t).

    Luma is kept, chroma is scaled by c and rotated by t, and YIQ is converted back to RGB.
    """
    turns = np.zeros((3, 3, 3))
    turns[0, 0, 0] = 1
    turns[1, 1, 1] = turns[1, 2, 2] = 1
    turns[2, 1, 2], turns[2, 2, 1] = -1, 1
    to_yiq = _RGB_TO_YIQ.astype(np.float64)
    matrices = [(np.linalg.inv(to_yiq) @ turn @ to_yiq).T.ravel() for turn in turns]
    return np.stack(matrices, 1).astype(np.float32)


_COLOUR_BASIS = _colour_basis()


def random_colour(
    brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.05
) -> Augmentation:
    """Jitters brightness, contrast, saturation and hue, all by one 3 x 3 matrix and an offset.

    All four are linear in RGB if the hue rotates in the YIQ plane, so one product per pixel
    replaces four passes (one through HSV). Gray images (C=1) get brightness and contrast.

    Args:
        brightness: the image is shifted by up to this share of 255.
        contrast: scaled about its mean by a factor in 1 +- contrast.
        saturation: chroma scaled by a factor in 1 +- saturation.
        hue: chroma rotated by up to this share of the full circle.

    Raises:
        ValueError: a negative strength, contrast or saturation above 1, hue above 0.5.
    """
    for name, value, most in (
        ("brightness", brightness, 1.0),
        ("contrast", contrast, 1.0),
        ("saturation", saturation, 1.0),
        ("hue", hue, 0.5),
    ):
        if not 0 <= value <= most:
            raise ValueError(f"random_colour: {name}={value} must be in [0, {most}]")

    def batch(images, seeds):
        shift, scale, chroma, angle = tf.unstack(_draws(seeds, 4) * 2 - 1, axis=1)
        shift, scale = 255.0 * brightness * shift, 1.0 + contrast * scale
        # Contrast about the mean color's luma, so that a gray mean does not change. Part of the
        # rows is enough for the mean. They are gathered, which copies rows; a strided slice would
        # copy value by value.
        some = tf.range(0, tf.shape(images)[1], 4)
        means = _exact_means(tf.gather(images, some, axis=1))
        if images.shape[3] == 1:
            offset = means[:, 0] * (1.0 - scale) + shift
            return _recolour(images, scale[:, None, None], offset)
        luma = sum(float(weight) * means[:, c] for c, weight in enumerate(_RGB_TO_YIQ[0]))
        chroma, angle = 1.0 + saturation * chroma, 2 * math.pi * hue * angle
        turned = scale, scale * chroma * tf.cos(angle), scale * chroma * tf.sin(angle)
        # No matrix product: the order of its sums may vary.
        terms = sum(_COLOUR_BASIS[:, i] * turned[i][:, None] for i in range(3))
        return _recolour(images, tf.reshape(terms, [-1, 3, 3]), luma * (1.0 - scale) + shift)

    def augment(image, seed):
        return batch(image[None], seed[None])[0]

    augment.batch = batch
    return augment


def _exact_means(images):
    """float32 [B, C], means of uint8 [B, h, w, C], independent of the order of summation."""
    count = tf.cast(tf.size(images[0, ..., 0]), tf.float32)
    # Rows first: the addends are adjacent in memory, which is several times faster.
    rows = tf.reduce_sum(tf.cast(images, tf.int32), axis=1)
    return tf.cast(tf.reduce_sum(rows, axis=1), tf.float32) / count


@_one_pass
def _recolour(images, matrices, offsets):
    """uint8 [B, H, W, C] times float32 [B, C, C] (row vectors) plus float32 [B], saturated."""
    pixels = tf.cast(images, tf.float32)
    # Not a matrix product, which the compiler would not fuse with the rest.
    terms = [pixels[..., j, None] * matrices[:, None, None, j] for j in range(images.shape[3])]
    return _to_uint8(sum(terms) + offsets[:, None, None, None])


def random_blur(most: float = 1.5, probability: float = 0.5, radius: int = 3) -> Augmentation:
    """Blurs with a Gaussian of deviation uniform in (0, most] pixels, edges mirrored.

    Args:
        most: the largest standard deviation, in pixels.
        probability: of blurring at all.
        radius: taps on each side of the kernel's center.

    Raises:
        ValueError: `most` is not positive.
    """
    if most <= 0:
        raise ValueError(f"random_blur: most={most} must be positive")

    def augment(image, seed):
        channels = image.shape[2]

        def blurred():
            deviation = _uniform(_fold(seed, 1), [], 0.05, most)
            taps = tf.range(-radius, radius + 1, dtype=tf.float32)
            kernel = tf.nn.softmax(-0.5 * tf.square(taps / deviation))
            pixels = tf.cast(image, tf.float32)[None]
            pad = [[0, 0], [radius, radius], [radius, radius], [0, 0]]
            pixels = tf.pad(pixels, pad, "SYMMETRIC")
            for shape in ([-1, 1, 1, 1], [1, -1, 1, 1]):
                taps_2d = tf.tile(tf.reshape(kernel, shape), [1, 1, channels, 1])
                pixels = tf.nn.depthwise_conv2d(pixels, taps_2d, [1, 1, 1, 1], "VALID")
            return _to_uint8(pixels[0])

        image_or_blurred = tf.cond(_coin(_fold(seed, 0), probability), blurred, lambda: image)
        return tf.ensure_shape(image_or_blurred, image.shape)

    return augment


def random_erasing(
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.2),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> Augmentation:
    """Fills a random rectangle with noise (Zhong et al. 2020, "Random Erasing", algorithm 1).

    A rectangle larger than the image is cut to it.

    Args:
        probability: of erasing at all.
        area: smallest and largest share of the image.
        aspect: smallest and largest height / width, drawn uniformly on a logarithmic scale.

    Raises:
        ValueError: a range that is empty or out of bounds.
    """
    _check_range("random_erasing area", *area, 0.0, 1.0)
    _check_range("random_erasing aspect", *aspect, 0.0, float("inf"))

    def augment(image, seed):
        def erased():
            shape = tf.shape(image)
            height, width = shape[0], shape[1]
            share, ratio, top, left = tf.unstack(_uniform(_fold(seed, 1), [4], 0.0, 1.0))
            pixels = tf.cast(height * width, tf.float32) * (area[0] + (area[1] - area[0]) * share)
            low, high = (math.log(bound) for bound in aspect)
            ratio = tf.exp(low + (high - low) * ratio)
            h = tf.clip_by_value(tf.cast(tf.round(tf.sqrt(pixels * ratio)), tf.int32), 1, height)
            w = tf.clip_by_value(tf.cast(tf.round(tf.sqrt(pixels / ratio)), tf.int32), 1, width)
            y, x = _between(top, height - h), _between(left, width - w)
            noise = tf.random.stateless_uniform(shape, _fold(seed, 2), 0, 256, tf.int32)
            rows, columns = tf.range(height)[:, None], tf.range(width)[None]
            inside = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
            return tf.where(inside[..., None], tf.cast(noise, tf.uint8), image)

        image_or_erased = tf.cond(_coin(_fold(seed, 0), probability), erased, lambda: image)
        return tf.ensure_shape(image_or_erased, image.shape)

    return augment
