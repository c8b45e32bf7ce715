"""Damaged stores and indices are read as they were or refused by name, and never crash."""

import contextlib
import pathlib
import sys

import numpy as np
import pytest

from retrieval.catalogue import index
from retrieval.embeddings import store
from trainer import files

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from damage import copy, damage_one, example, mutated, numbers, read_or_refused, seeded

POINTS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a store of two shards, `s`, and an index of two versions, `i`."""
    folder = tmp_path_factory.mktemp("good")
    names = np.array([f"item {n}" for n in range(40)])
    manifest = store.begin(folder / "s", {"checkpoint_sha256": "w"})
    for rows in (slice(0, 25), slice(25, 40)):
        part = store.Embedded(POINTS[rows], names[rows], names[rows], names[rows])
        store.append(folder / "s", manifest, part, 1)
    store.finish(folder / "s", manifest)
    index.build(folder / "s", folder / "i", "IVF2,SQ8")
    index.remove(["item 3"], folder / "i")
    return folder


def reseal(folder):
    """Makes the checksums of a store those of its damaged files."""
    manifest = files.read_json(folder / "manifest.json")
    del manifest["checksum"]
    for shard in manifest["shards"]:
        for kind in shard["sha256"]:
            path = folder / f"{shard['name']}.{kind}"
            if path.exists():
                shard["sha256"][kind] = files.sha256(path)
    files.write_sealed(folder / "manifest.json", manifest)


def test_damaged_stores(good, tmp_path):
    for number in numbers():
        with example("store", number):
            folder = copy(good / "s", tmp_path / "s")
            damage_one(folder, seeded("store", number), skip=(files.MARK, files.LOCK))
            found = read_or_refused(lambda f=folder: store.read(f), folder)
            if found:
                np.testing.assert_array_equal(found.embeddings, POINTS)
                assert found.ids.tolist() == [f"item {n}" for n in range(40)]


def test_damaged_stores_whose_checksums_agree(good, tmp_path):
    """What a foreign writer could hand over: another reason than the checksum must refuse it."""
    for number in numbers():
        with example("sealed store", number):
            folder = copy(good / "s", tmp_path / "s")
            skip = (files.MARK, files.LOCK, "manifest.json")
            damage_one(folder, seeded("sealed store", number), skip)
            reseal(folder)
            found = read_or_refused(lambda f=folder: store.read(f), folder)
            assert not found or (found.embeddings.shape == (40, 4) and len(found.ids) == 40)


def test_damaged_manifests_whose_checksum_agrees(good, tmp_path):
    for number in numbers():
        with example("sealed manifest", number):
            folder = copy(good / "s", tmp_path / "s")
            path = folder / "manifest.json"
            path.write_bytes(mutated(path.read_bytes(), seeded("sealed manifest", number)))
            value = None
            with contextlib.suppress(ValueError):
                value = files.read_json(path)
            if isinstance(value, dict):
                value.pop("checksum", None)
                with contextlib.suppress(ValueError):  # text that UTF-8 lacks
                    files.write_sealed(path, value)
            found = read_or_refused(lambda f=folder: store.read(f), folder)
            assert not found or found.embeddings.shape == (len(found.ids), 4)


def search(folder):
    """(version, ids, scores) of what an index finds."""
    with index.Catalogue.open(folder, everything=True) as loaded:
        found = loaded.find(POINTS[:3], 2)
        ids = [loaded.items["id"][row].as_py() for row in found.rows.ravel().tolist()]
        return loaded.manifest["version"], loaded.manifest["count"], ids, found.scores.tolist()


def test_damaged_indices(good, tmp_path):
    known = [search(good / "i")]
    earlier = copy(good / "i", tmp_path / "i")
    index.rollback(earlier, 1)
    known.append(search(earlier))
    for number in numbers():
        with example("index", number):
            folder = copy(good / "i", tmp_path / "i")
            damage_one(folder, seeded("index", number), skip=(files.MARK, files.LOCK))
            found = read_or_refused(lambda f=folder: search(f), folder)
            assert found in (None, *known)
