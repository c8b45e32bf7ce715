"""Augmentations: uint8 in and out, a function of the seed alone, and what each one does."""

import numpy as np
import pytest
import tensorflow as tf

from metriclearn import augment

NO_BOX = [0, 0, 0, 0]
PICTURES = {
    "random_crop": augment.random_crop(methods=augment.RESIZE_METHODS),
    "random_flip": augment.random_flip,
    "random_noise": augment.random_noise(),
    "random_colour": augment.random_colour(),
    "random_blur": augment.random_blur(probability=1.0),
    "random_erasing": augment.random_erasing(probability=1.0),
    "compose": augment.compose(augment.random_flip, augment.random_noise(), augment.random_blur()),
}


def picture(height=20, width=30, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def many(function, image, count=200):
    """[count, ...] results for the seeds of one step, in one compiled function."""
    apply = tf.function(
        lambda image, seeds: tf.map_fn(
            lambda seed: function(image, seed), seeds, fn_output_signature=tf.uint8
        )
    )
    return apply(tf.constant(image), augment.seeds_of(3, 0, count)).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PICTURES)
def test_stateless_on_uint8_of_either_depth(name, channels):
    image = picture(channels=channels)
    first, second = many(PICTURES[name], image, 8), many(PICTURES[name], image, 8)
    assert first.dtype == np.uint8 and first.shape == (8, 20, 30, channels)
    assert (first == second).all()
    assert len({pixels.tobytes() for pixels in first}) > 1


@pytest.mark.parametrize("name", PICTURES)
def test_a_batch_on_device_equals_its_pictures(name):
    function, batch = PICTURES[name], np.stack([picture(seed=i) for i in range(4)])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        seeds = augment.seeds_of(1, 9, 4)
        together = augment.batched(function)(tf.constant(batch), seeds)
        assert together.shape == (4, 20, 30, 3)
        alone = [function(tf.constant(batch[i]), seeds[i]) for i in range(4)]
        together, alone = session.run([together, tf.stack(alone)])
    assert (together == alone).all()


@pytest.mark.parametrize("name", PICTURES)
def test_a_batch_equals_its_slices(name):
    function = augment.batched(PICTURES[name])
    batch = np.stack([picture(seed=i) for i in range(6)])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        seeds = augment.seeds_of(1, 9, 6)
        whole = function(tf.constant(batch), seeds)
        parts = [function(tf.constant(batch[a:b]), seeds[a:b]) for a, b in ((0, 1), (1, 4), (4, 6))]
        whole, parts = session.run([whole, tf.concat(parts, 0)])
    assert (whole == parts).all()


def test_draws_are_uniform_and_independent():
    seeds = [augment.seeds_of(seed, step, 64) for seed in (0, 1) for step in range(64)]
    draws = np.concatenate([augment._draws(each, 4) for each in seeds])
    assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() < 1
    count = len(draws)
    for column in draws.T:  # chi-squared of 16 bins: mean 15, deviation 5.5
        seen = np.histogram(column, 16, (0, 1))[0]
        assert ((seen - count / 16) ** 2 / (count / 16)).sum() < 15 + 5 * 5.5
    # Between the draws of a picture, with the next picture's, and with the same place a step later.
    bound = 5 / np.sqrt(count)
    for other in (draws, np.roll(draws, 1, 0), np.roll(draws, 64, 0)):
        related = np.corrcoef(draws.T, other.T)[:4, 4:]
        if other is draws:
            related = related - np.eye(4)
        assert np.abs(related).max() < bound
    assert len(np.unique(draws[:, 0])) > count * 0.99


def test_compose_gives_each_function_its_own_numbers():
    draws = []

    def record(image, seed):
        draws.append(tuple(np.asarray(seed).tolist()))
        return image

    for number in range(50):
        augment.compose(record, record, record)(picture(), tf.constant([1, number], tf.int64))
    assert len(set(draws)) == 150


def test_flip_mirrors_half_of_them():
    image = picture()
    flipped = [(out == image[:, ::-1]).all() for out in many(augment.random_flip, image)]
    kept = [(out == image).all() for out in many(augment.random_flip, image)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 75 < sum(flipped) < 125


def windows(place, height, width, box=NO_BOX, count=300):
    def one(seed):
        return place(tf.constant(height), tf.constant(width), tf.constant(box, tf.int32), seed)

    every = tf.function(lambda seeds: tf.map_fn(one, seeds, fn_output_signature=tf.int32))
    return every(augment.seeds_of(0, 0, count)).numpy()


def test_random_window_is_a_share_of_the_sides_anywhere():
    y, x, h, w = windows(augment.random_window(), 100, 60).T
    assert h.min() >= 50 and h.max() <= 100 and h.min() < 55 and h.max() > 95
    assert np.abs(h / 100 - w / 60).max() < 0.02
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= 100).all() and (x + w <= 60).all()
    assert (y == 0).any() and (y + h == 100).any() and y.max() > 30
    _, _, h, w = windows(augment.random_window(square=True), 100, 60).T
    assert (h == w).all() and h.max() <= 60
    assert windows(augment.random_window(0.01, 0.01), 3, 3).min(0).tolist()[2:] == [1, 1]


def test_window_near_a_box():
    y, x, h, w = windows(augment.window_near_box(0.1, 0.1), 200, 300, [100, 50, 200, 150]).T
    for low, found in ((30, y), (80, x)):  # each edge within 0 to 0.2 of a side outside the box
        assert found.min() >= low and found.max() <= low + 20
        assert found.max() - found.min() > 15
    assert (y + h).min() >= 150 and (y + h).max() <= 170
    # Boxes that leave the picture, or lie outside it, are cut to it.
    for box in ([-10, -10, 500, 500], [400, 400, 500, 500]):
        y, x, h, w = windows(augment.window_near_box(), 200, 300, box).T
        assert (y >= 0).all() and (y + h <= 200).all() and (h >= 1).all()
        assert (x >= 0).all() and (x + w <= 300).all() and (w >= 1).all()
    free = windows(augment.window_near_box(), 100, 100)
    assert len(np.unique(free[:, 2])) > 20  # no box: a random window


def test_box_window_is_exact():
    assert windows(augment.box_window(), 50, 60, [10, 5, 30, 45], 1)[0].tolist() == [5, 10, 40, 20]
    wide = windows(augment.box_window(0.5), 50, 60, [10, 5, 30, 45], 1)[0]
    assert wide.tolist() == [0, 0, 50, 40]
    assert windows(augment.box_window(), 50, 60, NO_BOX, 1)[0].tolist() == [0, 0, 50, 60]


def test_random_resize_draws_every_method():
    image = picture(9, 9)
    resize = augment.random_resize(("nearest", "bilinear", "area"))
    results = many(lambda image, seed: resize(image, seed, (5, 7)), image, 40)
    kinds = {
        m: np.asarray(tf.image.resize(image, (5, 7), m)) for m in ("nearest", "bilinear", "area")
    }
    drawn = [
        next(m for m, pixels in kinds.items() if np.abs(out - pixels.astype(float)).max() <= 0.51)
        for out in results
    ]
    assert set(drawn) == set(kinds)


def test_noise_has_the_deviation_asked_for():
    image = np.full((40, 40, 3), 128, np.uint8)
    noise = many(augment.random_noise(10.0), image, 60).astype(float) - 128
    spread = noise.std(axis=(1, 2, 3))
    assert spread.max() < 10.6 and spread.max() > 8 and spread.min() < 2
    assert np.abs(noise.mean()) < 0.1
    assert (many(augment.random_noise(0), image, 2) == 128).all()


def test_colour_shifts_brightness_and_leaves_grey_grey():
    grey = np.full((8, 8, 3), 120, np.uint8)
    grey[:4] = 60
    out = many(augment.random_colour(brightness=0, contrast=0), grey, 30).astype(int)
    assert np.abs(out - grey).max() <= 1  # saturation and hue do nothing to grey
    out = many(augment.random_colour(0.2, 0, 0, 0), grey, 60).astype(int) - grey
    assert out.min() >= -51 and out.max() <= 51 and np.ptp(out, axis=(1, 2, 3)).max() == 0
    assert out.max() > 35 and out.min() < -35
    out = many(augment.random_colour(0, 0.5, 0, 0), grey, 60).astype(int)
    assert np.abs(out.mean((1, 2, 3)) - 90).max() < 1
    gap = (out[:, 4] - out[:, 3])[:, 0, 0]
    assert gap.min() >= 29 and gap.max() <= 91 and np.ptp(gap) > 40


def test_hue_turns_the_chroma_only():
    red = np.full((2, 2, 3), (200, 80, 80), np.uint8)
    out = many(augment.random_colour(0, 0, 0, 0.1), red, 60).astype(float)[:, 0, 0]
    luma = out @ [0.299, 0.587, 0.114]
    assert np.abs(luma - np.asarray([200, 80, 80]) @ [0.299, 0.587, 0.114]).max() < 1.5
    assert np.ptp(out[:, 1]) > 30
    identity = many(augment.random_colour(0, 0, 0, 0), picture(), 2)
    assert (identity == picture()).all()


def test_blur_keeps_constants_and_lowers_variance():
    flat = np.full((9, 9, 3), 77, np.uint8)
    assert (many(augment.random_blur(3.0, 1.0), flat, 5) == 77).all()
    image = picture(31, 31)
    spread = many(augment.random_blur(1.5, 1.0), image, 20).astype(float).std(axis=(1, 2, 3))
    assert spread.min() < 0.5 * image.std() and (spread <= image.std() + 0.1).all()
    assert (many(augment.random_blur(1.5, 0.0), image, 3) == image).all()


def test_erasing_fills_one_rectangle_of_the_area_asked_for():
    image = np.full((40, 60, 1), 7, np.uint8)
    for out in many(augment.random_erasing(1.0, area=(0.05, 0.1)), image, 40)[..., 0]:
        rows, columns = np.nonzero((out != 7).any(1))[0], np.nonzero((out != 7).any(0))[0]
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.04 * 2400 < area < 0.115 * 2400
        changed = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] != 7
        assert changed.mean() > 0.95
    assert (many(augment.random_erasing(0.0), image, 3) == image).all()
    tiny = many(augment.random_erasing(1.0, area=(0.9, 1.0), aspect=(0.01, 100)), picture(3, 3), 20)
    assert tiny.shape == (20, 3, 3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.random_window(0.0, 1.0), "random_window: low=0.0"),
        (lambda: augment.random_window(0.6, 1.2), "high=1.2"),
        (lambda: augment.random_crop(methods=("cubic",)), "unknown method 'cubic'"),
        (lambda: augment.random_resize(()), "no method"),
        (lambda: augment.random_noise(-1), "deviation=-1"),
        (lambda: augment.random_colour(hue=0.7), "hue=0.7"),
        (lambda: augment.random_blur(0), "most=0"),
        (lambda: augment.random_erasing(area=(0.5, 0.2)), "random_erasing area"),
        (lambda: augment.window_near_box(jitter=0.7), "jitter=0.7"),
    ],
)
def test_impossible_strengths_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
