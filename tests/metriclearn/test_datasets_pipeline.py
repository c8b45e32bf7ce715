"""The input pipeline: pure in (seed, step), damaged files by name."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from metriclearn import augment
from metriclearn.datasets import ProductTable, pipeline


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


def test_parts_joined_in_order_are_the_batch_and_read_only_their_own_images(table):
    whole = train(table, **CHANGES)
    parts = [train(table, part=(i, 3), **CHANGES) for i in range(3)]
    joined = [
        {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert same(whole, joined)
    with pytest.raises(ValueError, match="a batch of 6 has no part 0 of 4"):
        train(table, part=(0, 4))
    gone = ProductTable(products=["a"] * 4, paths=[*table.paths[:2], "gone.jpg", "gone.png"])

    def batches():
        return pipeline.train_batches(gone, lambda step: tf.range(4), image_size=8, part=(0, 2))

    assert run(batches, 1)[0]["id"].tolist() == [path.encode() for path in table.paths[:2]]


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


def test_a_window_placed_per_image_is_never_asked_of_an_image_without_a_size(table):
    """Whether a file is a JPEG or not, its window is its own: the right half here."""

    def right(height, width, box, seed):
        left = width // 2 + tf.random.stateless_uniform([], seed, 0, width, tf.int32) * 0
        return tf.stack([0, left, height, width - left])

    rows = range(12)
    found = run(
        lambda: pipeline.train_batches(
            table, lambda step: tf.range(12, dtype=tf.int64), image_size=(24, 32), crop=right
        ),
        1,
    )[0]["image"]
    for row, image in zip(rows, found, strict=True):
        pixels = np.asarray(Image.open(table.paths[row]).convert("RGB"))
        half = Image.fromarray(pixels[:, pixels.shape[1] // 2 :]).resize((32, 24))
        assert abs(np.asarray(half, int) - image).mean() < 6, row


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


def test_skipped_images_are_named_in_their_batch(tmp_path):
    table = damaged(tmp_path, lambda data: data[:60], (1, 6))
    out = run(lambda: pipeline.eval_batches(table, batch_size=4, image_size=8, on_bad_image="skip"))
    assert [len(b["id"]) for b in out] == [3, 3] and [len(b["image"]) for b in out] == [3, 3]
    assert [len(b["skipped"]) for b in out] == [1, 1]
    assert b"1.jpg: " in out[0]["skipped"][0] and b"6.jpg: " in out[1]["skipped"][0]
    assert np.concatenate([b["path"] for b in out]).astype(str).tolist() == [
        p for i, p in enumerate(table.paths.tolist()) if i not in (1, 6)
    ]


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
