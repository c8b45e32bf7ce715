"""The store and the index: what they keep, what they refuse, what survives a fault."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import tempfile

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import embed, progress
from retrieval import index as index_program
from retrieval.catalogue import index, neighbours
from retrieval.embeddings import embedder, store
from trainer import files

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
    manifest = store.begin(tmp_path / "half", {"checkpoint_sha256": "a"}, "float16")
    with pytest.raises(
        ValueError, match="'i0000.*' is too large for float16; take --dtype=float32"
    ):
        store.append(tmp_path / "half", manifest, items(points * 1e6), 1)


def test_two_writers_of_one_folder(tmp_path):
    with files.only_writer(tmp_path), pytest.raises(ValueError, match="another program"):  # noqa: SIM117
        with files.only_writer(tmp_path):
            pass


@pytest.mark.parametrize(
    ("factory", "on_disk"),
    [
        ("Flat", False),
        ("HNSW16", False),
        ("IVF8,SQ8", False),
        ("IVF8,SQ8", True),
        ("IVF8,PQ8np", False),
        ("IVF8,RaBitQ4", False),
        ("PCA16,IVF8,SQ8", False),
        ("IVF8,SQ4,RFlat", False),
    ],
)
def test_build_search_add_remove(tmp_path, points, factory, on_disk):
    source = write_store(tmp_path / "s", [items(points[:400]), items(points[400:], 400)])
    folder = tmp_path / "index"
    manifest = index.build(source, folder, factory, recall=0.9, on_disk=on_disk)
    assert manifest["count"] == 600
    # The lists are tuned within other stages, too; a graph never has fewer candidates than results.
    assert (manifest["tuned"]["effort"] or 0) >= {"Flat": 0, "HNSW16": 10}.get(factory, 2)
    # An index may be moved: what it refers to lies beside it.
    folder = folder.rename(tmp_path / "moved")
    loaded = index.load(folder)
    rows = index.find(loaded, points[:50], k=1)[1]
    assert np.mean(rows[:, 0] == np.arange(50)) >= 0.9
    # A category is searched alone, and yields as many as are asked for.
    rows = index.find(loaded, points[1:2], k=100, category="even")[1]
    assert set(loaded[1]["category"].take(rows[rows >= 0]).to_pylist()) == {"even"}
    assert (rows >= 0).mean() > 0.9
    # Removed items are not found; replaced ones are found where they are now.
    index.remove([f"i0003{NASTY}"], folder)
    moved = items(-points[7:8], 7)
    index.add(write_store(tmp_path / "more", [moved]), folder)
    loaded = index.load(folder)
    assert loaded[2]["count"] == 599 and loaded[2]["version"] == 3
    rows = index.find(loaded, np.concatenate([points[3:4], -points[7:8]]), k=5)[1]
    names = np.asarray(loaded[1]["id"])
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
    for factory in ("PQ8np", "IDMap,Flat"):
        with pytest.raises(ValueError, match=f"--index={factory}: FAISS cannot add to this kind"):
            index.build(source, folder, factory)
    index.build(source, folder, "Flat")
    other = write_store(tmp_path / "o", [items(points[:5], name="n")], weights="w2")
    with pytest.raises(ValueError, match="embedded with other weights"):
        index.add(other, folder)
    loaded = index.load(folder)
    with pytest.raises(ValueError, match="--k=0: takes a number from 1 on"):
        index.find(loaded, points, k=0)
    for wrong in ({"recall": 95}, {"memory": -1}, {"memory": 0}, {"memory": np.nan}):
        with pytest.raises(ValueError, match="--(recall|memory)=.*: takes a "):
            index.build(source, folder, "Flat", **wrong)
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


def test_lists_on_disk_are_checked(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match="has no inverted lists to keep on disk"):
        index.build(source, folder, "Flat", on_disk=True)
    # Blocks of 1024 rows are the least; the lists are those that memory would hold.
    index.build(source, folder, "IVF8,SQ8", on_disk=True, memory=1)
    index.build(source, tmp_path / "other", "IVF8,SQ8")
    for folder_ in (folder, tmp_path / "other"):
        loaded = index.load(folder_)
        loaded[2]["tuned"]["effort"] = 8
        found = index.find(loaded, points[:20], k=7)
        if folder_ is folder:
            expected = found
    np.testing.assert_array_equal(found[1], expected[1])
    lists = folder / "versions/000001/lists.ivfdata"
    assert index.load(folder, everything=True)[2]["on_disk"]
    data = bytearray(lists.read_bytes())
    data[-9] ^= 1
    lists.write_bytes(data)
    with pytest.raises(ValueError, match=r"lists\.ivfdata: is damaged"):
        index.load(folder, everything=True)
    lists.write_bytes(data[:-9])  # a mapped file that is too short would end the process
    with pytest.raises(ValueError, match=r"lists\.ivfdata: is damaged"):
        index.load(folder)


def test_what_cannot_be_built_or_added_is_named(tmp_path, points):
    """Nothing of these is left behind: neither a version nor a lock."""
    folder = tmp_path / "index"
    empty = write_store(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="empty: holds no embeddings"):
        index.build(empty, folder)
    zero = write_store(tmp_path / "zero", [items(points[:9] * (np.arange(9) != 4)[:, None])])
    with pytest.raises(ValueError, match="row 4 is all zeros"):
        index.build(zero, folder, "Flat")
    few = write_store(tmp_path / "few", [items(points[:5])])
    with pytest.raises(ValueError, match=r"--index=IVF8,SQ8: cannot be trained on 5 items"):
        index.build(few, folder, "IVF8,SQ8")
    with files.only_writer(folder), pytest.raises(ValueError, match="another program is writing"):
        index.build(few, folder, "Flat")
    assert not (folder / "current").exists()
    index.build(few, folder, "Flat")
    # Fewer items than asked for: the surplus is empty.
    scores, rows = index.find(index.load(folder), points[:2], k=8)
    assert (rows[:, 5:] == -1).all() and np.isneginf(scores[:, 5:]).all()
    assert sorted(rows[0, :5]) == [0, 1, 2, 3, 4]
    short = write_store(tmp_path / "short", [items(points[:5, :8], name="s")])
    with pytest.raises(ValueError, match="has 8 dimensions; the index takes 16"):
        index.add(short, folder)
    nothing = write_store(tmp_path / "nan", [])
    with pytest.raises(ValueError, match="holds no embeddings"):
        store.read(nothing)
    assert index.load(folder)[2]["version"] == 1


def test_a_table_that_lacks_items_is_named(tmp_path, points):
    folder = write_store(tmp_path / "s", [items(points[:9])])
    table = files.read_table(folder / "00000.parquet", store.COLUMNS)
    table = dict(zip(table.column_names, table.columns, strict=True))
    files.write_table(folder / "00000.parquet", {k: v[:7] for k, v in table.items()})
    with pytest.raises(ValueError, match=r"00000\.parquet: names 7 items for 9 embeddings"):
        store.read(folder, verify=False)
    files.write_table(folder / "00000.parquet", {k: v for k, v in table.items() if k != "id"})
    with pytest.raises(ValueError, match=r"00000\.parquet: not a table that can be read"):
        store.read(folder, verify=False)


def test_a_full_disk_leaves_the_shards_before_it(tmp_path, points, monkeypatch):
    manifest = store.begin(tmp_path, {"checkpoint_sha256": "a"})
    store.append(tmp_path, manifest, items(points[:9]), 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left.*00001\.npy"):
            store.append(tmp_path, manifest, items(points[9:20], 9), 1)
    assert sorted(os.listdir(tmp_path)) == ["00000.npy", "00000.parquet", "manifest.json"]
    again = store.begin(tmp_path, {"checkpoint_sha256": "a"})
    assert len(again["shards"]) == 1
    store.append(tmp_path, again, items(points[9:20], 9), 1)
    store.finish(tmp_path, again)
    np.testing.assert_array_equal(store.read(tmp_path).embeddings, points[:20])


@settings(max_examples=25)
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        min_size=1, max_size=8, unique=True,
    )
)  # fmt: skip
def test_any_text_is_an_id(names):
    random = np.random.default_rng(0)
    ids, blank = np.array(names), np.full(len(names), "")
    embedded = store.Embedded(random.normal(size=(len(ids), 3)).astype("f4"), ids, ids, blank)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = write_store(folder / "s", [embedded])
        assert store.read(source).ids.tolist() == names
        index.build(source, folder / "i", "Flat")
        index.remove(names[:1], folder / "i")
        loaded = index.load(folder / "i")
        assert loaded[1]["id"].to_pylist() == names
        rows = index.find(loaded, embedded.embeddings, k=1)[1][1:, 0]
        assert rows.tolist() == list(range(1, len(names)))


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_training_round_by_round_equals_that_of_faiss(points, similarity, capfd, monkeypatch):
    """Down to the lists; with its progress, and with one warning where the items are few."""
    monkeypatch.setattr(progress, "INTERVAL", 0)
    ours, theirs = (neighbours.make("IVF8,SQ8", points.shape[1], similarity) for _ in range(2))
    points = points[:200]
    neighbours.train(ours, points, "IVF8,SQ8", similarity)
    err = capfd.readouterr()[1]
    assert "training IVF8,SQ8, rounds: 10, " in err and err.count("WARNING") == 1
    theirs.train(neighbours.prepare(points, similarity))
    lists = (faiss.downcast_index(i).quantizer.reconstruct_n(0, 8) for i in (ours, theirs))
    np.testing.assert_array_equal(*lists)


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"shards": [], "sha256": {}}', "{"])
def test_a_foreign_manifest_is_named(tmp_path, points, content):
    source = write_store(tmp_path / "s", [items(points[:9])])
    index.build(source, tmp_path / "i", "Flat")
    for path, read in ((source, store.read), (tmp_path / "i/versions/000001", index.load)):
        (path / "manifest.json").write_text(content)
        folder = tmp_path / path.relative_to(tmp_path).parts[0]
        with pytest.raises(ValueError, match=r"manifest\.json: (is not of an? |cannot be read: )"):
            read(folder)
    with pytest.raises(ValueError, match="holds no store of embeddings; make one"):
        store.read(tmp_path)


def test_ids_to_remove_are_lines(tmp_path, points, capsys):
    """With a mark before the first, as some programs write it, and a carriage return after each."""
    rows = items(points[:9])
    names = np.array([f"a\u2028b{n}" for n in range(9)])  # Unicode parts lines there, nobody else
    source = write_store(tmp_path / "s", [dataclasses.replace(rows, ids=names)])
    index.build(source, tmp_path / "i", "Flat")
    line = ["remove", f"--ids={tmp_path}/gone.txt", f"--output={tmp_path}/i"]
    (tmp_path / "gone.txt").write_text(
        "\ufeffa\u2028b1\r\na\u2028b2\r\n", encoding="utf-8", newline=""
    )
    index_program.run(line)
    assert "7 items, 2 removed" in capsys.readouterr().out
    for content, said in (
        (b"", "names no ids"),
        (b"a\n\nb\n", "line 2: is empty"),
        (b"\xff", "text"),
    ):
        (tmp_path / "gone.txt").write_bytes(content)
        with pytest.raises(SystemExit):
            index_program.run(line)
        err = capsys.readouterr().err
        assert "gone.txt" in err and said in err
    assert index.manifest_of(tmp_path / "i")["version"] == 2


def test_what_a_killed_build_left_is_no_version(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points[:9])])
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")
    index.build(source, folder, "Flat")
    (folder / "versions/000003").mkdir()
    (folder / "versions/000003/index.faiss").write_bytes(b"half")
    assert index.load(folder)[2]["version"] == 2
    index.build(source, folder, "Flat")
    assert sorted(os.listdir(folder / "versions")) == ["000001", "000002", "000003"]
    assert index.load(folder)[2]["version"] == 3


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


def test_a_full_disk_ends_no_build_of_lists_on_disk(tmp_path, points, monkeypatch):
    """FAISS fills a mapped file: without room for it, a signal would end the program."""
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    index.build(source, folder, "IVF8,SQ8", on_disk=True)
    room = shutil.disk_usage(tmp_path)._replace(free=600 * (16 + 8) - 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: room)
        with pytest.raises(OSError, match=r"No space left on device for 14400 bytes.*lists\.ivf"):
            index.remove([f"i0001{NASTY}"], folder)
    assert os.listdir(folder / "versions") == ["000001"]
    assert index.load(folder, everything=True)[2]["count"] == 600


def test_answers_stand_alone_on_stdout(tmp_path, points, capfd):
    """FAISS prints, from C, where it finds lists on disk."""
    source = write_store(tmp_path / "s", [items(points)])
    index_program.run(["build", f"--store={source}", f"--output={tmp_path}/i", "--index=IVF8,SQ8",
               "--on_disk"])  # fmt: skip
    queries = write_store(tmp_path / "q", [items(points[:3])])
    capfd.readouterr()
    index_program.run(["search", f"--store={queries}", f"--output={tmp_path}/i", "--k=1"])
    answers = map(json.loads, capfd.readouterr().out.splitlines())
    assert [answer["query"] for answer in answers] == items(points[:3]).ids.tolist()


def test_the_choice_follows_size_memory_recall_and_disk():
    gib = 2**30

    def kind(*arguments, **options):
        factory, on_disk, _ = neighbours.choose(*arguments, **options)
        return factory + " on disk" * on_disk

    assert kind(10_000, 128, gib) == "Flat"
    assert kind(1_000_000, 128, 2 * gib) == "HNSW32"
    assert kind(1_000_000, 128, gib / 4) == "IVF4096,SQ8"
    assert kind(10_000_000, 128, gib, recall=0.85) == "IVF16384,RaBitQ4"
    assert kind(10_000_000, 128, 0.7 * gib, recall=0.8) == "IVF16384,PQ64np"
    assert kind(10_000_000, 128, gib / 2, recall=0.4) == "IVF16384,RaBitQ"
    assert kind(10_000_000, 128, gib, disk=9 * gib) == "IVF16384,SQ8 on disk"
    assert kind(1_000_000, 128, gib, recall=1) == "Flat"
    with pytest.raises(ValueError, match=r"at least 12\.7 GiB of memory, or 25\.3 GiB of disk"):
        neighbours.choose(100_000_000, 128, gib, disk=9 * gib)


@pytest.mark.parametrize(
    ("free", "recall", "expected"),
    [
        ("memory", 0.9, "Flat"),
        ("disk", 0.95, "IVF128,SQ8 on disk"),
        ("little memory", 0.87, "IVF128,RaBitQ4"),
    ],
)
def test_auto_builds_what_it_chose(tmp_path, monkeypatch, free, recall, expected):
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 5000 if free == "memory" else 100)
    random = np.random.default_rng(3)
    centers = random.normal(size=(30, 64))
    points = (centers[random.integers(0, 30, 2000)] + random.normal(size=(2000, 64))).astype("f4")
    source = write_store(tmp_path / "s", [items(points)])
    memory = {"memory": 2**30, "disk": 132_000, "little memory": 121_000}[free]
    manifest = index.build(source, tmp_path / "i", memory=memory, recall=recall)
    assert manifest["factory"] + " on disk" * manifest["on_disk"] == expected
    assert "GiB" in manifest["why"]
    rows = index.find(index.load(tmp_path / "i"), points[:100], k=10)[1]
    truth = neighbours.nearest(points[:100], [points], 10)[1]
    found = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, truth, strict=True)])
    assert found > recall - 0.1


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
    embedder.embed_to_store(tiny_model, "retrieval_index", whole, **arguments)
    append = store.append

    def killed(folder, manifest, part, batches):
        if len(manifest["shards"]) == 2:
            raise KeyboardInterrupt
        append(folder, manifest, part, batches)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            embedder.embed_to_store(tiny_model, "retrieval_index", broken, **arguments)
    embedder.embed_to_store(tiny_model, "retrieval_index", broken, **arguments)
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
    manifest = embedder.embed_to_store(
        tiny_model, "retrieval_query", tmp_path / "s", saved_model=str(tmp_path / "mean")
    )
    found = store.read(tmp_path / "s").embeddings
    assert manifest["count"] == 22
    images = embedder.pictures_of(tiny_model, "retrieval_query", store.read(tmp_path / "s").ids)
    means = np.array([image.mean() for image in images.values()])
    np.testing.assert_allclose(found, means[:, None] * [[1, 2]], rtol=1e-5)


def test_picture_files_are_embedded_as_the_models_own(tiny_model, tmp_path, monkeypatch, capsys):
    """A photo of a catalogue item, searched for in the catalogue that the model's dataset makes."""
    import sys

    from PIL import Image

    embedder.embed_to_store(tiny_model, "retrieval_index", tmp_path / "s", checkpoint=CHECKPOINT)
    catalogue = store.read(tmp_path / "s")
    images = embedder.pictures_of(tiny_model, "retrieval_index", catalogue.ids)
    (tmp_path / "photos").mkdir()
    for n, name in enumerate(catalogue.ids):
        Image.fromarray(images[name][:, :, 0]).save(tmp_path / f"photos/{n:02d}.png")
    columns = images.of_folder(tmp_path / "photos")
    embedder.embed_pictures(columns, tmp_path / "p", model=tiny_model, checkpoint=CHECKPOINT)
    found = store.read(tmp_path / "p")
    np.testing.assert_allclose(found.embeddings, catalogue.embeddings, atol=1e-6)
    # One photo, by the programs.
    index.build(tmp_path / "s", tmp_path / "i", "Flat")
    line = ["embed", "--model=tiny", f"--folder={tmp_path}/photos/07.png", f"--output={tmp_path}/q"]
    monkeypatch.setattr(sys, "argv", line)
    del sys.modules["tiny"]
    with pytest.raises(SystemExit) as left:
        embed.run(line)
    assert left.value.code == 0
    capsys.readouterr()
    index_program.run(["search", f"--store={tmp_path}/q", f"--output={tmp_path}/i", "--k=2"])
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["query"] == "07.png" and len(answer["results"]) == 2
    best = answer["results"][0]
    assert best["id"] == str(catalogue.ids[7]) and best["score"] == pytest.approx(1, abs=1e-6)


def test_a_model_without_a_placeholder_of_pictures_is_named(tiny_model, tmp_path, monkeypatch):
    columns = {name: np.array(["x"]) for name in ("id", "path", "product", "category")}
    arguments = {"model": tiny_model, "checkpoint": CHECKPOINT}
    monkeypatch.setattr(tiny_model, "build", lambda inputs, train_phase: inputs["image"])
    with pytest.raises(ValueError, match=r"tiny\.build\(inputs=None\) fails \(TypeError"):
        embedder.embed_pictures(columns, tmp_path / "s", **arguments)
    monkeypatch.setattr(tiny_model, "build", lambda inputs, train_phase: None)
    with pytest.raises(ValueError, match="makes no placeholder of pictures"):
        embedder.embed_pictures(columns, tmp_path / "s", **arguments)


def test_a_picture_that_cannot_be_read_is_one_line(tiny_model, monkeypatch):
    import tensorflow as tf

    def datasets():
        damaged = tf.data.Dataset.range(2).map(lambda n: _broken(tf, n))
        return {"retrieval_index": damaged.batch(1)}

    monkeypatch.setattr(tiny_model, "datasets", datasets)
    with pytest.raises(ValueError, match=r"^cannot read the picture 'a b\.jpg': truncated$"):
        embedder.embed_datasets(tiny_model, ["retrieval_index"], CHECKPOINT)


def _broken(tf, n):
    check = tf.debugging.Assert(n < 1, ["cannot read the picture 'a b.jpg': truncated"])
    with tf.control_dependencies([check]):
        text = {key: tf.identity("x") for key in ("id", "product", "category")}
        return text | {"image": tf.zeros([8, 8, 1], tf.uint8), "label": n}
