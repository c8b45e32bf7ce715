"""The store: what it keeps, what it refuses, what survives a fault."""

import errno
import os

import numpy as np
import pytest
from pyarrow import parquet
from stores import items, write_store

from retrieval.embeddings import store


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
    with pytest.raises(ValueError, match="'i0000.*' is too large for float16; use --dtype=float32"):
        store.append(tmp_path / "half", manifest, items(points * 1e6), 1)


def test_a_table_that_lacks_items_is_named(tmp_path, points):
    folder = write_store(tmp_path / "s", [items(points[:9])])
    table = parquet.read_table(folder / "00000.parquet")
    parquet.write_table(table.slice(0, 7), folder / "00000.parquet")
    with pytest.raises(ValueError, match=r"00000\.parquet: names 7 items for 9 embeddings"):
        store.read(folder, verify=False)
    parquet.write_table(table.drop_columns(["id"]), folder / "00000.parquet")
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
    assert sorted(os.listdir(tmp_path)) == [
        ".prototrain",
        "00000.npy",
        "00000.parquet",
        "manifest.json",
    ]
    again = store.begin(tmp_path, {"checkpoint_sha256": "a"})
    assert len(again["shards"]) == 1
    store.append(tmp_path, again, items(points[9:20], 9), 1)
    store.finish(tmp_path, again)
    np.testing.assert_array_equal(store.read(tmp_path).embeddings, points[:20])
