"""Tar shards as a data set."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from metriclearn.datasets import manifest, tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prototrain" / "tars"


def image(value):
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def shard(path, members):
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(content), 1_700_000_000
            out.addfile(about, io.BytesIO(content))


@pytest.fixture
def shop(tmp_path):
    """Two shards: labels as text before the images, and as JSON after them."""
    shard(
        tmp_path / "shop-008.tar",
        {"a/1.cls": b"shoe\n", "a/1.png": image(10), "2.PNG": image(20), "2.cls": b"hat"},
    )
    about = {"label": 7, "category": "caps", "split": "test", "role": "query", "price": 3}
    shard(
        tmp_path / "shop-009.tar",
        {"../../1.png": image(30), "../../1.json": json.dumps(about).encode(), "note.txt": b"x"},
    )
    return f"tar:{tmp_path}/shop-{{008..009}}.tar"


def test_samples_are_rows_of_a_table(shop, cache):
    for _ in range(2):  # the second reads what the first unpacked
        table = manifest.load(shop)
        assert table.ids.tolist() == [
            "shop-008.tar/a/1.png",
            "shop-008.tar/2.PNG",
            "shop-009.tar/../../1.png",
        ]
        assert table.products.tolist() == ["shoe", "hat", "7"]
        assert table.categories.tolist() == ["", "", "caps"]
        assert table.roles.tolist() == ["", "", "query"]
        reds = [np.asarray(Image.open(path))[0, 0, 0] for path in table.paths]
        assert reds == [10, 20, 30]
        assert all(path.startswith(str(cache)) for path in table.paths)
        assert {os.stat(path).st_mtime for path in table.paths} == {1_700_000_000}
    assert len(list(cache.iterdir())) == 2


def test_patterns_name_shards_in_order(shop, tmp_path):
    expected = manifest.load(shop).ids.tolist()
    for pattern in ("shop-*.tar", "shop-00{8..9}.tar", "shop-008.tar,{0}/shop-009.tar"):
        pattern = pattern.format(tmp_path) if ",{" in pattern else pattern
        assert manifest.load(f"tar:{tmp_path}/{pattern}").ids.tolist() == expected


def test_a_shard_that_changes_is_unpacked_again(shop, tmp_path):
    manifest.load(shop)
    shard(tmp_path / "shop-009.tar", {"3.cls": b"cap", "3.png": image(40)})
    assert manifest.load(shop).products.tolist() == ["shoe", "hat", "cap"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.png": b"x"}, "1.png has no label: give 1.cls"),
        ({"1.png": b"x", "1.json": b"[1]"}, "1.json cannot be read"),
        ({"1.png": b"x", "1.json": b'{"label": [1]}'}, "texts or whole numbers"),
        ({"1.cls": b"x"}, "the shards contain no image"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, cache, members, said):
    shard(tmp_path / "bad.tar", members)
    with pytest.raises(ValueError, match=said):
        manifest.load(f"tar:{tmp_path}/bad.tar")
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp"]


def test_a_shard_that_is_damaged_or_missing_is_one_line(shop, tmp_path):
    content = (tmp_path / "shop-008.tar").read_bytes()
    (tmp_path / "shop-008.tar").write_bytes(content[:700])
    with pytest.raises(ValueError, match="shop-008.tar: is not a complete tar file"):
        tar.load(shop)
    with pytest.raises(ValueError, match="shop-007.tar: there is no such file"):
        manifest.load(f"tar:{tmp_path}/shop-{{007..008}}.tar")
    with pytest.raises(ValueError, match="neither root nor columns"):
        manifest.load(shop, columns="label=x")
