"""The cache of decoded images: batches do not depend on it."""

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
