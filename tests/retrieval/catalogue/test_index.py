"""The index: what it finds, what it keeps, what it refuses."""

import os
import pathlib
import tempfile

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import NASTY, items, write_store

from retrieval.catalogue import index
from retrieval.embeddings import store
from trainer import files

pytestmark = pytest.mark.numeric


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
    loaded = index.Catalogue.open(folder)
    names = np.asarray(loaded.items["id"])
    rows = loaded.find(points[:50], k=1).rows
    assert np.mean(names[rows[:, 0]] == items(points[:50]).ids) >= 0.9
    # A category is searched alone, and yields as many as are asked for.
    rows = loaded.find(points[1:2], k=100, category="even").rows
    assert set(loaded.items["category"].take(rows[rows >= 0]).to_pylist()) == {"even"}
    assert (rows >= 0).mean() > 0.9
    # Removed items are not found; replaced ones are found where they are now.
    index.remove([f"i0003{NASTY}"], folder)
    moved = items(-points[7:8], 7)
    index.add(write_store(tmp_path / "more", [moved]), folder)
    loaded = index.Catalogue.open(folder)
    assert loaded.manifest["count"] == 599 and loaded.manifest["version"] == 3
    rows = loaded.find(np.concatenate([points[3:4], -points[7:8]]), k=5).rows
    names = np.asarray(loaded.items["id"])
    assert f"i0003{NASTY}" not in names[rows[0]]
    assert names[rows[1, 0]] == f"i0007{NASTY}" and rows[1, 0] == 600
    with pytest.raises(ValueError, match=r"id 'i0003.*is not in"):
        index.remove([f"i0003{NASTY}"], folder)


def test_what_an_index_refuses(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match="no such folder; make one with `prototrain build`"):
        index.Catalogue.open(folder)
    with pytest.raises(ValueError, match="--factory=Nonsense: FAISS cannot make it"):
        index.build(source, folder, "Nonsense")
    for factory in ("PQ8np", "IDMap,Flat"):
        with pytest.raises(ValueError, match=f"--factory={factory}: FAISS cannot add to this kind"):
            index.build(source, folder, factory)
    index.build(source, folder, "Flat")
    other = write_store(tmp_path / "o", [items(points[:5], name="n")], weights="w2")
    with pytest.raises(ValueError, match="embedded with other weights"):
        index.add(other, folder)
    loaded = index.Catalogue.open(folder)
    with pytest.raises(ValueError, match="--k=0: takes a number of at least 1"):
        loaded.find(points, k=0)
    for wrong in ({"recall": 95}, {"memory": -1}, {"memory": 0}, {"memory": np.nan}):
        with pytest.raises(ValueError, match="--(recall|memory)=.*: takes a "):
            index.build(source, folder, "Flat", **wrong)
    with pytest.raises(ValueError, match="the index takes"):
        loaded.find(points[:, :8])
    with pytest.raises(ValueError, match="row 1 is not finite"):
        loaded.find(np.array([points[0], points[1] * np.nan]))
    with pytest.raises(ValueError, match="category 'none'"):
        loaded.find(points[:1], category="none")
    twice = write_store(tmp_path / "t", [items(points[:5]), items(points[:5])])
    with pytest.raises(ValueError, match="occurs twice"):
        index.build(twice, folder, "Flat")
    data = folder / "versions/000001/index.faiss"
    data.write_bytes(data.read_bytes()[:-64])
    with pytest.raises(ValueError, match="is damaged"):
        index.Catalogue.open(folder)


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
    with pytest.raises(ValueError, match=r"--factory=IVF8,SQ8: cannot be trained on 5 items"):
        index.build(few, folder, "IVF8,SQ8")
    with files.only_writer(folder), pytest.raises(BlockingIOError, match="is writing there"):
        index.build(few, folder, "Flat")
    assert not (folder / "current").exists()
    index.build(few, folder, "Flat")
    # Fewer items than asked for: the surplus is empty.
    with index.Catalogue.open(folder) as loaded:
        found = loaded.find(points[:2], k=8)
        assert (found.rows[:, 5:] == -1).all() and np.isneginf(found.scores[:, 5:]).all()
        assert sorted(found.rows[0, :5]) == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="--k=100000000: the index holds 5 items"):
            loaded.find(points[:2], k=100_000_000)
    short = write_store(tmp_path / "short", [items(points[:5, :8], name="s")])
    with pytest.raises(ValueError, match="has 8 dimensions; the index takes 16"):
        index.add(short, folder)
    nothing = write_store(tmp_path / "nan", [])
    with pytest.raises(ValueError, match="holds no embeddings"):
        store.read(nothing)
    assert index.Catalogue.open(folder).manifest["version"] == 1


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
        loaded = index.Catalogue.open(folder / "i")
        assert loaded.items["id"].to_pylist() == names
        rows = loaded.find(embedded.embeddings, k=1).rows[1:, 0]
        assert rows.tolist() == list(range(1, len(names)))


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"shards": [], "sha256": {}}', "{"])
def test_a_foreign_manifest_is_named(tmp_path, points, content):
    source = write_store(tmp_path / "s", [items(points[:9])])
    index.build(source, tmp_path / "i", "Flat")
    for path, read in (
        (source, store.read),
        (tmp_path / "i/versions/000001", index.Catalogue.open),
    ):
        (path / "manifest.json").write_text(content)
        folder = tmp_path / path.relative_to(tmp_path).parts[0]
        with pytest.raises(
            ValueError, match=r"manifest\.json: (does not describe an? |cannot be read: )"
        ):
            read(folder)
    with pytest.raises(ValueError, match="is not a store of embeddings; make one"):
        store.read(tmp_path)


def test_an_index_of_other_columns_is_refused(shop):
    """Such as those written before items had paths."""
    (version,) = (shop / "i" / "versions").iterdir()
    items = pyarrow.ipc.open_file(str(version / "items.arrow")).read_all().drop_columns("path")
    with pyarrow.ipc.new_file(str(version / "items.arrow"), items.schema) as out:
        out.write_table(items)
    manifest = files.read_json(version / "manifest.json")
    manifest["bytes"]["items.arrow"] = os.path.getsize(version / "items.arrow")
    manifest["sha256"]["items.arrow"] = files.sha256(version / "items.arrow")
    del manifest["checksum"]
    files.write_sealed(version / "manifest.json", manifest)
    with pytest.raises(ValueError, match="written by another version.*build it again"):
        index.Catalogue.open(shop / "i")
