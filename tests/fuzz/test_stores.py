"""Damaged stores and indices are read as they were or refused by name, and never crash."""

import pathlib
import sys

import numpy as np
import pytest

from retrieval.catalogue import index
from retrieval.embeddings import store
from trainer import files

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from damage import SEEDS, copy, damage_one, damaged

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


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_store(good, tmp_path, seed):
    random = np.random.default_rng(seed)
    folder = copy(good / "s", tmp_path / "s")
    damage_one(folder, random, skip=(files.MARK, files.LOCK))
    try:
        found = store.read(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        np.testing.assert_array_equal(found.embeddings, POINTS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_store_whose_checksums_agree(good, tmp_path, seed):
    """What a foreign writer could hand over: another reason than the checksum must refuse it."""
    random = np.random.default_rng(seed)
    folder = copy(good / "s", tmp_path / "s")
    damage_one(folder, random, skip=(files.MARK, files.LOCK, "manifest.json"))
    reseal(folder)
    try:
        found = store.read(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert found.embeddings.shape == (40, 4) and len(found.ids) == 40


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_manifest_whose_checksum_agrees(good, tmp_path, seed):
    random = np.random.default_rng(seed)
    folder = copy(good / "s", tmp_path / "s")
    path = folder / "manifest.json"
    path.write_bytes(damaged(path.read_bytes(), random))
    try:
        value = files.read_json(path)
        if isinstance(value, dict):
            value.pop("checksum", None)
            files.write_sealed(path, value)
        found = store.read(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert found.embeddings.shape == (len(found.ids), 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_index(good, tmp_path, seed):
    random = np.random.default_rng(seed)
    folder = copy(good / "i", tmp_path / "i")
    damage_one(folder, random, skip=(files.MARK, files.LOCK))
    try:
        with index.Catalogue.open(folder, everything=True) as loaded:
            count = loaded.manifest["count"]
            assert loaded.find(POINTS[:3], 2).rows.shape == (3, 2)
        assert count in (39, 40)
    except ValueError as error:
        assert str(folder) in str(error)
