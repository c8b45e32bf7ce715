"""Images get their size in the same way in training, embedding and search, near to Pillow's."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from metriclearn import augment
from metriclearn.datasets import ProductTable, pipeline
from retrieval.embeddings import images
from retrieval.embeddings.embedder import Embedder

v1 = tf.compat.v1
SIZE = (24, 24)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images with fine structure: a PNG, a JPEG that decoders reduce, a JPEG in portrait."""
    folder = tmp_path_factory.mktemp("photos")
    for name, sides in (("a.png", (40, 32)), ("b.jpg", (300, 200)), ("c.jpg", (50, 90))):
        across, down = np.meshgrid(np.arange(sides[0]), np.arange(sides[1]))
        waves = [np.sin(across / 4), np.cos(down / 3), np.sin((across + down) / 5)]
        pixels = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=98, subsampling=0)
    return sorted(map(str, folder.iterdir()))


def by_pillow(path, how):
    """As torchvision and Hugging Face do it: resize, then the middle.

    With padding as timm and OpenCLIP do it: the longer side fits, the borders have the color.
    """
    image = Image.open(path)
    sides, size = np.array([image.height, image.width]), np.array(SIZE)
    method, _, color = how.method.partition("+pad=")
    whole = np.round(size / how.share).astype(int)
    if how.square or color:
        whole = np.round(sides * whole[0] / (max if color else min)(sides)).astype(int)
    kind = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    resized = np.asarray(image.resize(tuple(whole[::-1].tolist()), kind[method.split("+")[0]]))
    (top, left), (height, width) = np.maximum(whole - size, 0) // 2, np.minimum(whole, size)
    found = np.zeros((*SIZE, 3), np.uint8) + np.array(color.split(",") if color else 0, np.uint8)
    down, right = (size - (height, width)) // 2
    middle = resized[top : top + height, left : left + width]
    found[down : down + height, right : right + width] = middle
    return found


@pytest.mark.parametrize(
    "how",
    [
        augment.Resizing("bicubic+antialias", 1.0, True),
        augment.Resizing("bilinear+antialias", 0.75, True),
        augment.Resizing("bicubic+antialias", 1.0, False),
        augment.Resizing("bicubic+antialias+pad=0,0,0"),
        augment.Resizing("bilinear+antialias+pad=124,117,104", 0.8),
    ],
)
def test_all_readers_agree_and_are_near_to_pillow(photos, how, tmp_path):
    def build(session):
        pixels = v1.placeholder(tf.uint8, [None, *SIZE, 3], "image")
        return {"image": pixels}, tf.reshape(tf.cast(pixels, tf.float32), [-1, 24 * 24 * 3])

    options = {"source": {}, "threads": 1, "resizing": how._asdict()}
    with Embedder.of_graph(build, size=SIZE, channels=3, **options) as made:
        found = np.stack([made.decode(path) for path in photos])
        made.save(tmp_path / "model")
    with Embedder.load(tmp_path / "model") as loaded:  # as search and the server have it
        again = np.stack([loaded.decode(path) for path in photos])
        assert loaded.resizing == how._asdict()
        np.testing.assert_array_equal(loaded.embed(photos), found.reshape(3, -1))
    np.testing.assert_array_equal(again, found)
    table = ProductTable(products=list("abc"), ids=list("abc"), paths=photos)
    embedded = images.of_table(table, SIZE, 3, 3, resizing=how._asdict())
    np.testing.assert_array_equal(next(iter(embedded))["image"], found)
    training = pipeline.train_batches(
        table, lambda step: tf.range(3, dtype=tf.int64), image_size=SIZE, crop=how.window,
        method=how.method,
    )  # fmt: skip
    np.testing.assert_array_equal(next(iter(training))["image"], found)
    # Decoders of JPEG differ by more. Pillow crops after the resize, so its border sees beyond.
    edge = 0 if "+pad" in how.method and how.share == 1 else 3
    inside = slice(None), slice(edge, SIZE[1] - edge)
    expected = by_pillow(photos[0], how)[inside].astype(int)
    assert np.abs(found[0][inside].astype(int) - expected).max() <= 1
