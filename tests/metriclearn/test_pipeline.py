"""The input pipeline: pure in (seed, step), every kind of file, damaged files by name."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from metriclearn import augment
from metriclearn.datasets import ProductTable, images, pipeline


def photo(height, width, seed=0):
    """A smooth RGB picture, which JPEG keeps nearly as it is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i in range(12):
        path = folder / (f"{i}.jpg" if i % 3 else f"{i}.png")
        photo(40 + 4 * i, 50 + 30 * i, i).save(path)
        paths.append(str(path))
    return ProductTable(
        products=[f"p{i // 2}" for i in range(12)],
        paths=paths,
        categories=["c"] * 12,
        splits=["train"] * 12,
        boxes=[[5, 6, 25, 30]] * 12,
    )


def sample(step):
    return tf.random.stateless_uniform([6], [7, step], 0, 12, tf.int64)


def run(build, count=None):
    """The first `count` batches (all when None) in a graph of their own, as NumPy."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        batch = tf.compat.v1.data.make_one_shot_iterator(build()).get_next()
        out = []
        while count is None or len(out) < count:
            try:
                out.append(session.run(batch))
            except tf.errors.OutOfRangeError:
                break
        return out


def train(table, count=3, **options):
    options = {"image_size": (24, 32), "seed": 5} | options
    return run(lambda: pipeline.train_batches(table, sample, **options), count)


def same(a, b):
    return all((x[k] == y[k]).all() for x, y in zip(a, b, strict=True) for k in x)


CHANGES = {
    "crop": augment.random_window(),
    "augment": augment.compose(augment.random_flip, augment.random_colour()),
}


def test_batches_are_what_the_sampler_says(table):
    for step, batch in enumerate(train(table)):
        rows = np.asarray(sample(tf.constant(step, tf.int64)))
        assert batch["image"].shape == (6, 24, 32, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int64
        assert (batch["label"] == table.labels[rows]).all()
        assert (batch["id"].astype(str) == table.ids[rows]).all()
        assert (batch["product"].astype(str) == table.products[rows]).all()
        assert (batch["category"] == b"c").all()


def test_a_batch_depends_on_seed_and_step_alone(table):
    whole = train(table, 5, **CHANGES)
    assert same(train(table, 2, start_step=3, **CHANGES), whole[3:])
    other = train(table, 5, **(CHANGES | {"seed": 6}))
    assert not same(other, whole) and (other[0]["id"] == whole[0]["id"]).all()


def test_static_shapes(table):
    with tf.Graph().as_default():
        spec = pipeline.train_batches(table, sample, image_size=8, channels=1).element_spec
        assert spec["image"].shape == (6, 8, 8, 1) and spec["label"].shape == (6,)
        spec = pipeline.eval_batches(table, batch_size=5, image_size=8).element_spec
        assert spec["image"].shape.as_list() == [None, 8, 8, 3]


def test_eval_gives_each_picture_once_in_order(table):
    out = run(lambda: pipeline.eval_batches(table, batch_size=5, image_size=16))
    assert [len(b["label"]) for b in out] == [5, 5, 2]
    assert np.concatenate([b["id"] for b in out]).astype(str).tolist() == table.ids.tolist()
    assert np.concatenate([b["path"] for b in out]).astype(str).tolist() == table.paths.tolist()
    pixels = np.concatenate([b["image"] for b in out])
    for row in range(12):
        wanted = np.asarray(Image.open(table.paths[row]).resize((16, 16)), int)
        assert np.abs(pixels[row] - wanted).mean() < 14, row


def test_eager_use(table):
    batch = next(iter(pipeline.eval_batches(table, batch_size=12, image_size=16)))
    assert batch["image"].shape == (12, 16, 16, 3)


@pytest.mark.parametrize("crop", [None, augment.random_window()])
def test_pixels_in_memory(table, crop):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    memory = ProductTable(products=table.products, ids=table.ids, images=pixels)
    batch = train(memory, 1, image_size=8, channels=1, crop=crop)[0]
    rows = np.asarray(sample(tf.constant(0, tf.int64)))
    assert batch["image"].shape == (6, 8, 8, 1)
    assert (batch["image"] == pixels[rows]).all() == (crop is None)
    assert train(memory, 1, image_size=4, channels=1, crop=crop)[0]["image"].shape[1] == 4
    with pytest.raises(ValueError, match="have 1 channels; channels=3"):
        train(memory)
    with pytest.raises(ValueError, match="a cache .* has no use"):
        train(memory, channels=1, crop=crop, cache=pipeline.DecodedCache(9))


@pytest.mark.parametrize("changes", [CHANGES, {"method": "bicubic"}])
def test_batches_do_not_depend_on_what_the_cache_holds(table, changes):
    roomy, small = pipeline.DecodedCache(1 << 20), pipeline.DecodedCache(30_000)
    first = train(table, 6, cache=roomy, **changes)
    assert len(roomy) == 12 and roomy.bytes == sum(i.nbytes for i, _ in roomy._kept.values())
    assert same(train(table, 6, cache=roomy, **changes), first)
    assert same(train(table, 2, start_step=4, cache=roomy, **changes), first[4:])
    for _ in range(2):  # what is past the budget is decoded again
        assert same(train(table, 6, cache=small, **changes), first)
        assert 0 < small.bytes <= 30_000 and 0 < len(small) < 12
    assert same(train(table, 6, cache=pipeline.DecodedCache(0), **changes), first)


def test_cached_pictures_are_those_decoded_each_time(table):
    for size, most in (((24, 32), 1), ((32, 64), 0)):
        options = {"image_size": size, "crop": augment.window_near_box()}
        cached = train(table, 8, cache=pipeline.DecodedCache(1 << 20), **options)
        plain = train(table, 8, **options)
        apart = [
            np.abs(a["image"].astype(int) - b["image"]) for a, b in zip(cached, plain, strict=True)
        ]
        assert np.max(apart) <= most and np.mean(apart) < 1e-4
        assert all((a["id"] == b["id"]).all() for a, b in zip(cached, plain, strict=True))


def test_resizing_a_batch_of_windows_equals_one_by_one():
    rng = np.random.default_rng(4)
    canvas = rng.integers(0, 256, (40, 64, 64, 3), np.uint8)
    sides = rng.integers(1, 65, (40, 2)).astype(np.int32)
    for method in ("bilinear", "nearest"):
        together = images.resize_windows(tf.constant(canvas), tf.constant(sides), (16, 32), method)
        for i, (h, w) in enumerate(sides):
            assert (images.resize(canvas[i, :h, :w], (16, 32), method) == together[i]).numpy().all()


def test_batched_and_single_augmentations_in_one_chain(table):
    def invert(image, seed):
        return 255 - image

    chain = augment.compose(augment.random_flip, invert, augment.random_colour())
    assert not hasattr(chain, "batch")
    plain = train(table, 2)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for step, (batch, changed) in enumerate(
            zip(plain, train(table, 2, augment=chain), strict=True)
        ):
            seeds = augment.seeds_of(5, step, 6)
            alone = [chain(tf.constant(batch["image"][i]), seeds[i]) for i in range(6)]
            assert (session.run(tf.stack(alone)) == changed["image"]).all()


DAMAGE = {
    "truncated": (lambda data: data[: len(data) // 2], "truncated or damaged"),
    "empty": (lambda data: b"", "the file is empty"),
    "a web page": (lambda data: b"<html></html>", "not a JPEG, PNG, GIF, BMP, WebP or TIFF"),
    "gone": (None, "No such file"),
}


def damaged(tmp_path, change, which=(3,), count=8):
    paths = []
    for i in range(count):
        data = encoded(photo(20, 20, i), "JPEG")
        path = tmp_path / f"{i}.jpg"
        paths.append(str(path))
        if i not in which:
            path.write_bytes(data)
        elif change:
            path.write_bytes(change(data))
    return ProductTable(products=[f"p{i}" for i in range(count)], paths=paths)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_named(tmp_path, kind):
    change, reason = DAMAGE[kind]
    table = damaged(tmp_path, change)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"3.jpg: .*{reason}.*on_bad_image"):
        run(lambda: pipeline.eval_batches(table, batch_size=4, image_size=8))
    with pytest.warns(UserWarning, match=f"1 of 8 images .* skipped .*3.jpg: .*{reason}"):
        good = pipeline.usable_images(table, "skip")
    assert good.ids.tolist() == [p for i, p in enumerate(table.ids.tolist()) if i != 3]
    assert pipeline.usable_images(table, "error") is table


@pytest.mark.parametrize("size", [4, 6])  # reduced by two, and not at all
def test_windows_planned_for_the_batch_are_those_of_each_picture(tmp_path, size):
    planned = augment.random_window()
    table = damaged(tmp_path, None, (), 12)
    # Another function, without the attributes: each picture's window is placed on its own.
    alone = train(table, crop=lambda *given: planned(*given), image_size=size)
    assert same(train(table, crop=planned, image_size=size), alone)
    for change in (lambda data: data[:300], None):
        with pytest.raises(tf.errors.InvalidArgumentError, match="3.jpg: .*on_bad_image"):
            train(damaged(tmp_path, change, count=12), 6, crop=planned, image_size=size)


@pytest.mark.parametrize("which", [(0,), (7,), (4, 5, 6, 7), tuple(range(8))])
def test_bad_files_anywhere_in_the_stream(tmp_path, which):
    table = damaged(tmp_path, lambda data: data[:60], which)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{which[0]}.jpg: "):
        run(lambda: pipeline.eval_batches(table, batch_size=4, image_size=8))

    def fixed(step):
        return (tf.range(4, dtype=tf.int64) + 4 * step) % 8

    for cache in (None, pipeline.DecodedCache(1 << 20)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"{which[0]}.jpg: "):
            run(
                lambda cache=cache: pipeline.train_batches(table, fixed, image_size=8, cache=cache),
                3,
            )
    assert pipeline.unreadable_images(table).tolist() == list(which)


def test_none_left_to_use(tmp_path):
    table = damaged(tmp_path, None, which=range(8))
    with pytest.raises(ValueError, match="none of the 8 images can be read"):
        pipeline.usable_images(table, "skip")
    with pytest.raises(ValueError, match="must be 'error' or 'skip', not 'ignore'"):
        pipeline.usable_images(table, "ignore")


def test_wrong_arguments(table):
    def build(sampler=sample, **options):
        with tf.Graph().as_default():
            pipeline.train_batches(table, sampler, **({"image_size": 8} | options))

    with pytest.raises(ValueError, match="static shape"):
        build(lambda step: tf.range(step))
    with pytest.raises(ValueError, match="image_size must be"):
        build(image_size=0)
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        build(channels=4)
    with pytest.raises(ValueError, match="augment must return uint8, not float32"):
        build(augment=lambda image, seed: tf.cast(image, tf.float32))
    with pytest.raises(ValueError, match="the table of training images is empty"):
        pipeline.train_batches(table.select([]), sample, image_size=8)
    with pytest.raises(ValueError, match="batch_size must be positive"):
        pipeline.eval_batches(table, batch_size=0, image_size=8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a row that the table does not have"):
        run(lambda: pipeline.train_batches(table, lambda s: tf.fill([6], s + 12), image_size=8), 1)


# Kinds of files.


def decode(data, **options):
    image, ratio = images.decode(tf.constant(data), **options)
    return np.asarray(image).astype(int), int(ratio)


def test_grey_and_cmyk_and_progressive_jpeg():
    picture = photo(32, 48)
    rgb = np.asarray(picture, int)
    for data in (
        encoded(picture.convert("CMYK"), "JPEG", quality=95),
        encoded(picture, "JPEG", quality=95, progressive=True),
    ):
        assert np.abs(decode(data)[0] - rgb).mean() < 6
    grey = decode(encoded(picture.convert("L"), "JPEG"))[0]
    assert grey.shape == (32, 48, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert decode(encoded(picture, "JPEG"), channels=1)[0].shape == (32, 48, 1)


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = [200, 100, 0, 255]
    rgba[1] = [0, 0, 0, 51]
    rgba[1, 2] = [255, 0, 0, 0]
    image, _ = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert image[0, 0].tolist() == [200, 100, 0]
    assert image[1, 0].tolist() == [204, 204, 204] and image[1, 2].tolist() == [255, 255, 255]
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 8, 7])
    data = encoded(palette, "PNG", transparency=0)
    assert decode(data)[0].tolist() == [[[255, 255, 255]]]
    assert decode(encoded(palette, "PNG"))[0].tolist() == [[[9, 8, 7]]]
    shown = decode(encoded(Image.fromarray(rgba), "WEBP", lossless=True))[0]
    assert shown[0, 0].tolist() == [200, 100, 0] and shown[1, 0].tolist() == [204, 204, 204]


def test_sixteen_bits_keep_the_upper_eight():
    deep = np.asarray([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    image, _ = decode(encoded(Image.fromarray(deep), "PNG"), channels=1)
    assert image.ravel().tolist() == [0, 0, 1, 0x12, 0xFF]


def test_animation_gives_its_first_frame():
    frames = [Image.new("P", (5, 4), i) for i in range(3)]
    for i, frame in enumerate(frames):
        frame.putpalette([0, 0, 0, 10, 20, 30, 90, 90, 90])
        frame.putpixel((i, 0), 1)
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, _ = decode(data)
    assert image.shape == (4, 5, 3)
    assert image[0, 0].tolist() == [10, 20, 30] and not image[0, 1:].any()
    frames = [photo(9, 9), photo(9, 9, 1)]
    for kind in ("WEBP", "TIFF"):
        options = {"save_all": True, "append_images": frames[1:], "lossless": True}
        data = encoded(frames[0], kind, **options)
        assert np.abs(decode(data)[0] - np.asarray(frames[0], int)).mean() < 8, kind


@pytest.mark.parametrize("kind", ["BMP", "WEBP"])
def test_bmp_and_webp(kind):
    picture = photo(16, 20)
    image, _ = decode(encoded(picture, kind))
    assert np.abs(image - np.asarray(picture, int)).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decoding_at_a_reduced_scale(kind):
    picture = photo(100, 203)
    data = encoded(picture, kind)
    full = decode(data)[0]
    for least, ratio in (
        ((100, 203), 1),
        ((51, 20), 1),
        ((50, 101), 2),
        ((13, 26), 4),
        ((9, 9), 8),
    ):
        image, reduced = decode(data, least=least)
        assert reduced == ratio, least
        assert image.shape == (-(-100 // ratio), -(-203 // ratio), 3)
        inner = full[: 100 // ratio * ratio, : 203 // ratio * ratio]
        blocks = inner.reshape(100 // ratio, ratio, 203 // ratio, ratio, 3).mean((1, 3))
        assert np.abs(image[: len(blocks), : blocks.shape[1]] - blocks).mean() < 4


def test_fused_crop_gives_the_pixels_of_crop_after_decode():
    rng = np.random.default_rng(2)
    noisy = Image.fromarray(rng.integers(0, 256, (67, 90, 3), np.uint8))
    for data in (encoded(noisy, "JPEG"), encoded(noisy, "JPEG", subsampling=1)):
        for least in (None, (30, 40)):
            whole, ratio = decode(data, least=least)
            for _ in range(8):
                y, x = rng.integers(0, [len(whole) - 3, whole.shape[1] - 3])
                window = [y, x, rng.integers(1, len(whole) - y), rng.integers(1, 40)]
                part = decode(
                    data, least=least, window=lambda *_, w=window: tf.constant(w, tf.int32)
                )
                h = min(window[2], len(whole) - y)
                w = min(window[3], whole.shape[1] - x)
                assert (part[0] == whole[y : y + h, x : x + w]).all() and part[1] == ratio


def test_boxes_are_reduced_with_the_picture_and_windows_clipped():
    data = encoded(photo(80, 80), "JPEG")
    seen = []

    def window(height, width, box):
        seen.append((int(height), int(width), np.asarray(box).tolist()))
        return tf.constant([-5, 30, 1000, 1000])

    image, ratio = decode(data, least=(20, 20), window=window, box=tf.constant([9, 10, 41, 79]))
    assert ratio == 4 and seen[-1] == (20, 20, [2, 2, 11, 20])
    assert image.shape == (20, 1, 3)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("least", [None, (10, 10)])
def test_photos_are_turned_as_the_camera_noted(turn, least):
    """Upright as Pillow turns them, with their boxes."""
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = photo(40, 60)
    data = encoded(picture, "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(upright.reduce(4 if least else 1), int)
    image, ratio = decode(data, least=least)
    assert ratio == (4 if least else 1)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 5
    # A box around the file's upper left part, marked in a mask that Pillow turns likewise.
    mask = Image.new("L", (60, 40))
    mask.paste(255, (4, 8, 24, 20))
    mask = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(mask, "PNG", exif=exif))))
    )
    y, x = np.nonzero(mask)
    seen = []

    def window(height, width, box):
        seen.append(np.asarray(box).tolist())
        return tf.stack([0, 0, height, width])

    decode(data, window=window, box=tf.constant([4, 8, 24, 20]))
    assert seen[-1] == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_too_large_an_image_is_refused_by_its_header():
    for kind in ("JPEG", "PNG"):
        data = encoded(photo(30, 40), kind)
        assert decode(data, max_pixels=1200)[0].shape == (30, 40, 3)
        with pytest.raises(ValueError, match="40 x 30 pixels exceed the limit"):
            decode(data, max_pixels=1199)


def test_only_the_accepted_formats_are_opened(tmp_path):
    script = tmp_path / "a.jpg"
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n")
    with pytest.raises(ValueError, match="not a JPEG, PNG, GIF, BMP, WebP or TIFF file"):
        images.read(script)
    os.mkfifo(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        images.read(tmp_path / "b.jpg")


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_palettes_of_every_format(kind):
    palette = photo(16, 20).quantize(40)
    image, _ = decode(encoded(palette, kind))
    assert (image == np.asarray(palette.convert("RGB"), int)).all()


def test_skipped_images_are_named_in_their_batch(tmp_path):
    table = damaged(tmp_path, lambda data: data[:60], (1, 6))
    out = run(lambda: pipeline.eval_batches(table, batch_size=4, image_size=8, on_bad_image="skip"))
    assert [len(b["id"]) for b in out] == [3, 3] and [len(b["image"]) for b in out] == [3, 3]
    assert [len(b["skipped"]) for b in out] == [1, 1]
    assert b"1.jpg: " in out[0]["skipped"][0] and b"6.jpg: " in out[1]["skipped"][0]
    assert np.concatenate([b["path"] for b in out]).astype(str).tolist() == [
        p for i, p in enumerate(table.paths.tolist()) if i not in (1, 6)
    ]


def test_unlike_windows_need_no_canvas_that_holds_both(tmp_path, monkeypatch):
    """One tall and one wide image, from the cache, whose joint canvas would be mostly empty."""
    paths = [str(tmp_path / f"{i}.jpg") for i in range(2)]
    photo(900, 20).save(paths[0])
    photo(20, 900).save(paths[1])
    table = ProductTable(products=["a", "b"], paths=paths)
    sampler = lambda step: tf.constant([0, 1], tf.int64)  # noqa: E731
    monkeypatch.setattr(pipeline, "CANVAS", 0)
    cache = pipeline.DecodedCache(1)
    monkeypatch.setattr(cache, "cut", lambda *_: pytest.fail("made a canvas"))
    cached = run(lambda: pipeline.train_batches(table, sampler, image_size=8, cache=cache), 2)
    plain = run(lambda: pipeline.train_batches(table, sampler, image_size=8), 2)
    assert same(cached, plain) and not {0, 1} & cache._open.keys()


@pytest.mark.parametrize("cached", [False, True])
def test_special_files_are_named_and_not_read(tmp_path, cached):
    photo(9, 9).save(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")  # opening it would wait for a writer
    table = ProductTable(products=["a", "b"], paths=[str(tmp_path / f"{n}.jpg") for n in "ab"])
    options = {"image_size": 8, "cache": pipeline.DecodedCache(1 << 20) if cached else None}
    sampler = lambda step: tf.constant([0, 1], tf.int64)  # noqa: E731
    with pytest.raises(tf.errors.InvalidArgumentError, match="b.jpg: not a regular file"):
        run(lambda: pipeline.train_batches(table, sampler, **options), 1)
    assert pipeline.unreadable_images(table).tolist() == [1]
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read .*b.jpg: not a regular"):
        assert len(pipeline.usable_images(table, "skip")) == 1


def test_tall_and_wide_images_take_a_small_multiple_of_their_own_size(tmp_path):
    """8000 x 150 beside 150 x 8000: a canvas for both would take 11 GB of floats."""
    paths = [str(tmp_path / f"{i}.jpg") for i in range(2)]
    photo(8000, 150).save(paths[0])
    photo(150, 8000).save(paths[1])
    program = f"""
import resource
import tensorflow as tf
from metriclearn.datasets import ProductTable, pipeline

table = ProductTable(products=["a", "b"], paths={paths!r})
rows = lambda step: tf.constant([0, 1, 0, 1, 0, 1, 0, 1], tf.int64)
peaks = []
for size in (8, (150, 150)):  # the first loads all code, and reduces both images by 8
    for cache in (None, pipeline.DecodedCache(1)):
        batches = pipeline.train_batches(table, rows, image_size=size, cache=cache)
        assert all(b["image"].shape[0] == 8 for b in batches.take(2))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) << 10 < 40 * 8000 * 150 * 3  # bytes of one image: 3.6 MB


def test_the_graph_is_as_small_for_a_large_table():
    def size(count):
        names = [f"a/long/path/to/an/image/{i}.jpg" for i in range(count)]
        table = ProductTable(products=names, paths=names)
        with tf.Graph().as_default() as graph:
            batches = pipeline.train_batches(table, sample, image_size=8)
            tf.compat.v1.data.make_one_shot_iterator(batches)
            return graph.as_graph_def().ByteSize()

    assert abs(size(20_000) - size(20)) < 100
