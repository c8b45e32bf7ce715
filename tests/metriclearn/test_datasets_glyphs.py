"""Glyphs: products without look-alikes, disjoint splits, a cache that survives damage."""

import os
import unicodedata

import numpy as np
import pytest

from metriclearn.datasets import glyphs, queries_and_catalogue


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def table(cache):
    return glyphs.load(cache)


def test_characters_are_products_and_faces_their_pictures(table):
    assert table.images.shape[1:] == (32, 32, 1)
    assert table.ids[table.column("character") == "A"][0] == "glyphs/U+0041/DejaVuSans"
    _, pictures = np.unique(table.products, return_counts=True)
    assert pictures.min() >= glyphs.MIN_FACES and pictures.max() <= len(glyphs.FACES)
    assert len(pictures) > 2000
    assert set(table.categories) >= {"Latin", "Greek", "Cyrillic", "number", "punctuation"}
    assert table.images.any(axis=(1, 2, 3)).all()


def test_splits_share_no_character_and_queries_have_an_answer(table):
    parts = [set(table.where(split=s).products) for s in ("train", "val", "test")]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    for split in ("val", "test"):
        queries, catalogue = queries_and_catalogue(table, split)
        assert set(catalogue.column("face")) == {"DejaVuSans"}
        assert len(set(catalogue.products)) == len(catalogue)
        assert set(queries.products) <= set(catalogue.products)
        assert "DejaVuSans" not in queries.column("face")


def test_no_two_characters_look_alike(table):
    # Against plain loops over a part: no picture of another character is (nearly) the same.
    pixels = table.images[..., 0].astype(np.float64)
    small = pixels.reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(len(pixels), -1)
    energy = np.square(small).sum(1)
    rows = np.random.default_rng(0).choice(len(table), 200, replace=False)
    for row in rows:
        squared = energy + energy[row] - 2 * small @ small[row]
        floor = np.minimum(energy, energy[row])
        share = np.where(table.column("face") == table.column("face")[row], 0.04, 0.02)
        alike = (squared <= share * floor * (1 - 1e-5)) & (table.products != table.products[row])
        assert not alike.any(), (table.ids[row], table.ids[np.argmax(alike)])
    # The classic ones: Latin A stays, Greek and Cyrillic A go.
    assert "A" in table.column("character")
    assert not {"\u0391", "\u0410"} & set(table.column("character"))


def test_look_alikes_finds_what_a_plain_comparison_finds():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, 8, 8)).astype(np.uint8)
    images[20:] = np.clip(images[:20] + rng.normal(0, 40, (20, 8, 8)), 0, 255)
    codes, faces = np.arange(40), rng.integers(0, 2, 40)
    small = images.reshape(40, 4, 2, 4, 2).mean((2, 4)).reshape(40, -1)
    expected = set()
    for i in range(40):
        for j in range(i + 1, 40):
            share = 0.02 if faces[i] == faces[j] else 0.01
            floor = min((small[i] ** 2).sum(), (small[j] ** 2).sum())
            if ((small[i] - small[j]) ** 2).sum() <= share * floor:
                expected.add((i, j))
    assert 3 < len(expected) < 20
    assert glyphs.look_alikes(images, codes, faces, same=0.02, other=0.01, block=7) == expected


def test_cache_is_one_file_read_again_and_rebuilt_when_damaged(table, cache, monkeypatch):
    (file,) = cache.iterdir()
    monkeypatch.setattr(glyphs, "render", lambda: pytest.fail("rendered again"))
    assert (glyphs.load(cache).images == table.images).all()
    whole = file.read_bytes()
    marked = (np.zeros((1, 32, 32), np.uint8), np.asarray([65], np.int32), np.zeros(1, np.int32))
    monkeypatch.setattr(glyphs, "split_by_product", lambda p, *a, **k: np.full(len(p), "test"))
    for damage in (whole[:-1], whole[:1000], b"", whole[:40] + b"x" + whole[41:]):
        file.write_bytes(damage)
        monkeypatch.setattr(glyphs, "render", lambda: marked)
        assert len(glyphs.load(cache)) == 1  # rendered, and written again:
        monkeypatch.setattr(glyphs, "render", lambda: pytest.fail("rendered again"))
        assert len(glyphs.load(cache)) == 1
    assert len(list(cache.iterdir())) == 1  # no temporary file stays
    file.write_bytes(whole)


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert glyphs.cache_folder() == os.path.join(tmp_path, "prototrain")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert glyphs.cache_folder() == os.path.expanduser("~/.cache/prototrain")


def test_unwritable_cache_warns_and_still_loads(monkeypatch, tmp_path, table):
    arrays = (table.images[..., 0], *_codes_and_faces(table))
    monkeypatch.setattr(glyphs, "render", lambda: arrays)
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be cached in .*set XDG_CACHE_HOME"):
        again = glyphs.load(tmp_path / "file")
    assert (again.ids == table.ids).all()


def _codes_and_faces(table):
    codes = np.asarray([int(p[2:], 16) for p in table.products], np.int32)
    faces = np.asarray([glyphs.FACES.index(f) for f in table.column("face")], np.int32)
    return codes, faces


def test_categories():
    assert glyphs.category(ord("a")) == "Latin"
    assert glyphs.category(0x1D538) == "Mathematical letter"
    assert glyphs.category(ord("7")) == "number"
    assert unicodedata.category("+") == "Sm" and glyphs.category(ord("+")) == "mathematical symbol"
