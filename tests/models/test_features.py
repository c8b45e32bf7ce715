"""The store of a frozen backbone's features: what it depends on, kills, damage, batches."""

import dataclasses
import fcntl
import os
import pathlib
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from metriclearn import augment
from metriclearn.datasets import ProductTable
from models import backbones
from models.backbones import features

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import savedmodels

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3)).astype(np.uint8)
RANDOM = {
    "views": 3,
    "random_crop": augment.random_window(0.4, 0.8),
    "augment": augment.random_noise(),
    "recipe": "crop .4 to .8, noise",
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("net") / "tf2")
    savedmodels.write_tf2(folder)
    return backbones.load(folder, input_range="0,1")


@pytest.fixture
def table():
    return ProductTable(
        products=[f"p{i // 2}" for i in range(10)],
        ids=[f"picture {i}" for i in range(10)],
        categories=["a"] * 5 + ["b"] * 5,
        images=PIXELS,
    )


@pytest.fixture
def files(table, tmp_path):
    """The same pictures in files."""
    paths = [str(tmp_path / f"{i}.png") for i in range(10)]
    for path, pixels in zip(paths, PIXELS, strict=True):
        pathlib.Path(path).write_bytes(tf.io.encode_png(pixels).numpy())
    return dataclasses.replace(table, paths=paths, images=None)


def stores(cache):
    return sorted(os.listdir(os.path.join(cache, "features")))


def expected(backbone, pixels):
    with tf.Graph().as_default(), v1.Session() as session:
        output = backbone.apply(tf.constant(pixels))
        session.run(v1.global_variables_initializer())
        return session.run(output)


def test_features_are_those_of_the_backbone_and_are_computed_once(
    backbone, files, tmp_path, monkeypatch
):
    first = features.embed(backbone, files, image_size=16, batch_size=4, cache=tmp_path)
    assert first.values.shape == (1, 10, 8)
    np.testing.assert_allclose(first.values[0], expected(backbone, PIXELS), atol=1e-6)
    monkeypatch.setattr(features, "_embedder", None)
    # As models do: while their own graph is being built.
    with tf.Graph().as_default():
        again = features.embed(backbone, files, image_size=16, batch_size=4, cache=tmp_path)
    np.testing.assert_array_equal(again.values, first.values)
    assert isinstance(again.values, np.memmap) and not again.values.flags.writeable


def test_random_views_follow_the_seed_and_keep_the_plain_one_first(backbone, table, tmp_path):
    made = [
        features.embed(
            backbone, table, image_size=16, batch_size=4, seed=seed, cache=tmp_path / name, **RANDOM
        ).values
        for seed, name in ((0, "a"), (0, "b"), (1, "a"))
    ]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_allclose(made[0][0], expected(backbone, PIXELS), atol=1e-6)
    np.testing.assert_array_equal(made[0][0], made[2][0])
    pairs = (made[0][1], made[0][2]), (made[0][1:], made[2][1:]), (made[0][:1], made[0][1:])
    for one, other in pairs:
        assert (np.abs(one - other).max(-1) > 1e-4).all()


def test_another_store_for_other_pictures_sizes_weights_recipes_and_colors(
    backbone, files, tmp_path, monkeypatch
):
    class Asked(Exception):
        pass

    def ask(folder, *arguments, **options):
        raise Asked(folder)

    monkeypatch.setattr(features.store, "fill", ask)

    def store(table=files, network=backbone, image_size=16, **options):
        with pytest.raises(Asked) as asked:
            features.embed(network, table, image_size=image_size, cache=tmp_path, **options)
        return str(asked.value)

    first, others = store(), [
        store(image_size=(16, 12)),
        store(method="bicubic"),
        store(with_color=True),
        store(files.select(np.arange(9))),
        store(dataclasses.replace(files, boxes=np.full((10, 4), (2, 2, 9, 9)))),
        store(network=dataclasses.replace(backbone, fingerprint="of others")),
        store(network=dataclasses.replace(backbone, preprocessing="other pixels")),
        store(crop=augment.box_window(), recipe="to the box"),
        store(**RANDOM),
        store(**RANDOM | {"recipe": "another"}),
        store(**RANDOM | {"seed": 1}),
    ]  # fmt: skip
    assert first == store() == store(seed=1, batch_size=2)  # which plain views do not depend on
    pathlib.Path(files.paths[0]).write_bytes(tf.io.encode_png(PIXELS[1]).numpy())
    others.append(store())
    assert len({first, *others}) == 13


def test_a_killed_run_resumes_where_it_was(backbone, table, tmp_path, monkeypatch):
    """Killed among the random views; the store equals one made in one go."""
    options = {"image_size": 16, "batch_size": 4, **RANDOM}
    whole = features.embed(backbone, table, cache=tmp_path / "whole", **options).values
    monkeypatch.setattr(features, "SHARD_SECONDS", 0)
    ran = []
    after = 6  # 3 batches of plain images, then 3 of 5

    class Killed(BaseException):
        pass

    def counted(self, batch, run=features.Embedder.run):
        if len(ran) == after:
            raise Killed
        ran.append(batch)
        return run(self, batch)

    monkeypatch.setattr(features.Embedder, "run", counted)
    with pytest.raises(Killed):
        features.embed(backbone, table, cache=tmp_path, **options)
    after += 2
    found = features.embed(backbone, table, cache=tmp_path, **options)
    assert len(ran) == after
    np.testing.assert_allclose(found.values, whole, atol=1e-6)


@pytest.mark.parametrize("harm", ("flip", "truncate", "remove", "note"))
def test_a_damaged_store_is_refused_with_what_to_do(backbone, table, tmp_path, harm):
    made = features.embed(backbone, table, image_size=16, cache=tmp_path)
    path = pathlib.Path(made.folder, "00000.npy")
    del made
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-3] ^= 1
        path.write_bytes(data)
    elif harm == "truncate":
        path.write_bytes(data[:-40])
    elif harm == "remove":
        path.unlink()
    else:
        path.with_name("manifest.json").write_text("{")
    with pytest.raises(
        ValueError, match=f"{path.parent}(?s:.*): delete {path.parent} and run again"
    ):
        features.embed(backbone, table, image_size=16, cache=tmp_path)


def test_bad_arguments_and_pictures(backbone, files, tmp_path):
    def embed(network=backbone, table=files, **options):
        return features.embed(network, table, image_size=16, cache=tmp_path, **options)

    with pytest.raises(ValueError, match="resnet18 has no weights yet"):
        embed(backbones.load("resnet18"))
    with pytest.raises(ValueError, match="Give a recipe"):
        embed(**RANDOM | {"recipe": ""})
    with pytest.raises(ValueError, match="views=2: further views need random_crop or augment"):
        embed(views=2)
    with pytest.raises(ValueError, match="views=1: .*one has none"):
        embed(augment=augment.random_flip, recipe="flip")
    pathlib.Path(files.paths[7]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the image .*7\.png: not a JPEG") as caught:
        embed()
    assert "\n" not in str(caught.value)
    pathlib.Path(files.paths[7]).unlink()
    with pytest.raises(ValueError, match=r"cannot read the image .*7\.png: No such file"):
        embed()


def test_batches_are_rows_of_the_store_and_a_function_of_seed_and_step(backbone, table, tmp_path):
    store = features.embed(backbone, table, image_size=16, cache=tmp_path, **RANDOM)

    def sample(step):
        return (step * 4 + tf.range(4, dtype=tf.int64)) % 10

    def batches(**options):
        dataset = features.train_batches(store, sample, **options)
        return list(dataset.take(40).as_numpy_iterator())

    first = batches()
    views = set()
    for step, batch in enumerate(first):
        rows = (step * 4 + np.arange(4)) % 10
        np.testing.assert_array_equal(batch["label"], table.labels[rows])
        assert [i.decode() for i in batch["id"]] == table.ids[rows].tolist()
        assert [c.decode() for c in batch["category"]] == table.categories[rows].tolist()
        for row, found in zip(rows, batch["features"], strict=True):
            (view,) = np.flatnonzero((store.values[:, row] == found).all(1))
            views.add((row, view))
    assert len(views) == 30  # every view of every picture in 160 draws
    spec = features.train_batches(store, sample).element_spec
    assert spec["features"].shape == (4, 8) and spec["label"].dtype == tf.int64
    later = batches(start_step=7)
    for a, b in zip(first[7:], later, strict=False):
        np.testing.assert_array_equal(a["features"], b["features"])
    assert any(
        (a["features"] != b["features"]).any() for a, b in zip(first, batches(seed=1), strict=True)
    )
    every = list(features.eval_batches(store, batch_size=4).as_numpy_iterator())
    assert [len(batch["id"]) for batch in every] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b["features"] for b in every]), store.values[0])


def test_who_embeds_the_same_at_once_waits_and_finds_it_done(backbone, table, tmp_path, capfd):
    """A lock is the file descriptor's, so that one process can play both programs."""
    made = features.embed(backbone, table, image_size=16, cache=tmp_path)
    found = []

    def embed():
        found.append(features.embed(backbone, table, image_size=16, cache=tmp_path))

    with open(os.path.join(made.folder, ".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=embed)
        other.start()
        said = ""
        while "waiting: another program embeds the same" not in said:
            said += capfd.readouterr().err
        assert not found
    other.join()
    np.testing.assert_array_equal(found[0].values, made.values)
