"""The store and the index: what they keep, what they refuse, what survives a fault."""

import errno
import os

import numpy as np
import pytest

from retrieval import embed, files, index, store

NASTY = "<b>\n\"',é"


def items(points, start=0, name="i"):
    rows = range(start, start + len(points))
    return store.Embedded(
        points,
        np.array([f"{name}{n:04d}{NASTY}" for n in rows]),
        np.array([f"p{n // 2}" for n in rows]),
        np.array(["even" if n % 2 == 0 else "odd" for n in rows]),
    )


def write_store(folder, parts, weights="w1", dtype="float32"):
    folder.mkdir()
    manifest = store.begin(folder, {"checkpoint_sha256": weights}, dtype)
    for part in parts:
        store.append(folder, manifest, part, 1)
    store.finish(folder, manifest)
    return folder


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)


def test_a_store_gives_back_what_it_took(tmp_path, points):
    folder = write_store(tmp_path / "s", [items(points[:350]), items(points[350:], 350)])
    found = store.read(folder)
    np.testing.assert_array_equal(found.embeddings, points)
    np.testing.assert_array_equal(found.ids, items(points).ids)
    np.testing.assert_array_equal(found.categories, items(points).categories)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "table"])
def test_a_damaged_store_is_refused(tmp_path, points, damage):
    folder = write_store(tmp_path / "s", [items(points)])
    path = folder / ("00000.parquet" if damage == "table" else "00000.npy")
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[-5] ^= 1
        path.write_bytes(data[:-100] if damage == "truncate" else data)
    with pytest.raises(ValueError, match=r"00000\.(npy|parquet): is (damaged|missing)"):
        store.read(folder)


def test_an_unfinished_or_other_store_is_refused(tmp_path, points):
    manifest = store.begin(tmp_path, {"checkpoint_sha256": "a"})
    store.append(tmp_path, manifest, items(points), 1)
    with pytest.raises(ValueError, match="incomplete"):
        store.read(tmp_path)
    with pytest.raises(ValueError, match="another checkpoint_sha256"):
        store.begin(tmp_path, {"checkpoint_sha256": "b"})
    with pytest.raises(ValueError, match="is not finite"):
        store.append(tmp_path, manifest, items(points * np.nan), 1)


def test_two_writers_of_one_folder(tmp_path):
    with files.only_writer(tmp_path), pytest.raises(ValueError, match="another program"):  # noqa: SIM117
        with files.only_writer(tmp_path):
            pass


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,SQ8", "IVF8,PQ8"])
def test_build_search_add_remove(tmp_path, points, factory):
    source = write_store(tmp_path / "s", [items(points[:400]), items(points[400:], 400)])
    folder = tmp_path / "index"
    manifest = index.build(source, folder, factory, recall=0.9)
    assert manifest["count"] == 600
    loaded = index.load(folder)
    rows = index.find(loaded, points[:50], k=1)[1]
    assert np.mean(rows[:, 0] == np.arange(50)) >= 0.9
    # A category is searched alone, and yields as many as are asked for.
    rows = index.find(loaded, points[1:2], k=100, category="even")[1]
    assert (loaded[1]["category"][rows[rows >= 0]] == "even").all()
    assert (rows >= 0).mean() > 0.9
    # Removed items are not found; replaced ones are found where they are now.
    index.remove([f"i0003{NASTY}"], folder)
    moved = items(-points[7:8], 7)
    index.add(write_store(tmp_path / "more", [moved]), folder)
    loaded = index.load(folder)
    assert loaded[2]["count"] == 599 and loaded[2]["version"] == 3
    rows = index.find(loaded, np.concatenate([points[3:4], -points[7:8]]), k=5)[1]
    names = loaded[1]["id"]
    assert f"i0003{NASTY}" not in names[rows[0]]
    assert names[rows[1, 0]] == f"i0007{NASTY}" and rows[1, 0] == 600
    with pytest.raises(ValueError, match=r"id 'i0003.*is not in"):
        index.remove([f"i0003{NASTY}"], folder)


def test_what_an_index_refuses(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match="holds no index"):
        index.load(folder)
    with pytest.raises(ValueError, match="--index=Nonsense: FAISS cannot make it"):
        index.build(source, folder, "Nonsense")
    index.build(source, folder, "Flat")
    other = write_store(tmp_path / "o", [items(points[:5], name="n")], weights="w2")
    with pytest.raises(ValueError, match="embedded with other weights"):
        index.add(other, folder)
    loaded = index.load(folder)
    with pytest.raises(ValueError, match="the index takes"):
        index.find(loaded, points[:, :8])
    with pytest.raises(ValueError, match="row 1 is not finite"):
        index.find(loaded, np.array([points[0], points[1] * np.nan]))
    with pytest.raises(ValueError, match="category 'none'"):
        index.find(loaded, points[:1], category="none")
    twice = write_store(tmp_path / "t", [items(points[:5]), items(points[:5])])
    with pytest.raises(ValueError, match="occurs twice"):
        index.build(twice, folder, "Flat")
    data = folder / "versions/000001/index.faiss"
    data.write_bytes(data.read_bytes()[:-64])
    with pytest.raises(ValueError, match="is damaged"):
        index.load(folder)


def test_a_full_disk_leaves_the_old_version(tmp_path, points, monkeypatch):
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            index.remove([f"i0001{NASTY}"], folder)
    assert os.listdir(folder / "versions") == ["000001"]
    assert index.load(folder)[2]["count"] == 600


def test_the_choice_follows_size_memory_and_recall():
    gib = 2**30
    assert index.choose(10_000, 128, gib)[0] == "Flat"
    assert index.choose(1_000_000, 128, 2 * gib)[0] == "HNSW32"
    assert index.choose(1_000_000, 128, gib / 4)[0] == "IVF4096,SQ8"
    assert index.choose(10_000_000, 128, gib)[0] == "IVF16384,PQ64"
    assert index.choose(1_000_000, 128, gib, recall=1)[0] == "Flat"
    with pytest.raises(ValueError, match=r"need at least 6\.7 GiB"):
        index.choose(100_000_000, 128, gib)


@pytest.fixture
def tiny_model(tiny, monkeypatch):
    from trainer import config as config_lib

    monkeypatch.syspath_prepend(tiny)
    monkeypatch.chdir(tiny)
    model = config_lib.load_model("tiny")
    model.config["model.size"] = 16
    return model


CHECKPOINT = "experiments/exp-tiny/checkpoint/model-3"


def test_embedding_goes_on_after_a_kill(tiny_model, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = {"checkpoint": CHECKPOINT, "shard_rows": 7}
    embed.embed_to_store(tiny_model, "retrieval_index", whole, **arguments)
    append = store.append

    def killed(folder, manifest, part, batches):
        if len(manifest["shards"]) == 2:
            raise KeyboardInterrupt
        append(folder, manifest, part, batches)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            embed.embed_to_store(tiny_model, "retrieval_index", broken, **arguments)
    embed.embed_to_store(tiny_model, "retrieval_index", broken, **arguments)
    a, b = store.read(whole), store.read(broken)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.ids, b.ids)
    assert len(store.manifest_of(broken)["shards"]) == 4


def test_embedding_with_a_saved_model(tiny_model, tmp_path):
    """A TF2 SavedModel of any origin; the pictures are the model's datasets."""
    import tensorflow as tf

    class Mean(tf.Module):
        def __init__(self):
            self.weight = tf.Variable([[1.0, 2.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32)])
        def serve(self, picture):
            return {"embeddings": tf.reduce_mean(picture, [1, 2]) @ self.weight}

    module = Mean()
    tf.saved_model.save(module, str(tmp_path / "mean"), signatures=module.serve)
    manifest = embed.embed_to_store(
        tiny_model, "retrieval_query", tmp_path / "s", saved_model=str(tmp_path / "mean")
    )
    found = store.read(tmp_path / "s").embeddings
    assert manifest["count"] == 22
    images = embed.pictures_of(tiny_model, "retrieval_query", store.read(tmp_path / "s").ids)
    means = np.array([image.mean() for image in images.values()])
    np.testing.assert_allclose(found, means[:, None] * [[1, 2]], rtol=1e-5)


def test_a_picture_that_cannot_be_read_is_one_line(tiny_model, monkeypatch):
    import tensorflow as tf

    def datasets():
        damaged = tf.data.Dataset.range(2).map(lambda n: _broken(tf, n))
        return {"retrieval_index": damaged.batch(1)}

    monkeypatch.setattr(tiny_model, "datasets", datasets)
    with pytest.raises(ValueError, match=r"^cannot read the picture 'a b\.jpg': truncated$"):
        embed.embed_datasets(tiny_model, ["retrieval_index"], CHECKPOINT)


def _broken(tf, n):
    check = tf.debugging.Assert(n < 1, ["cannot read the picture 'a b.jpg': truncated"])
    with tf.control_dependencies([check]):
        text = {key: tf.identity("x") for key in ("id", "product", "category")}
        return text | {"image": tf.zeros([8, 8, 1], tf.uint8), "label": n}
