"""Where a store's files are: a folder, or an S3 server of this machine."""

import concurrent.futures
import os
import pathlib

import numpy as np
import pytest

from retrieval.catalogue import index
from retrieval.embeddings import parts, places, store
from trainer import files


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket on a local server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.delenv(name, raising=False)
        import s3fs

        s3fs.S3FileSystem().mkdir("shop")
        yield "s3://shop"
    server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "s3":
        return places.at(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    here = {"folder": f"{tmp_path}/f", "file": f"file://{tmp_path}/f"}
    return places.at(here.get(request.param, f"memory://{tmp_path.name}"))


def test_a_name_is_taken_once(place):
    """Also by many at a time, and what is there is whole."""
    assert not place.exists("parts/a.json") and place.names("parts") == []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        contents = [b"%d" % n * 999 for n in range(8)]
        if isinstance(place, places.Bucket) and place.url.startswith("memory"):
            contents = contents[:1]  # looks first and writes then
        won = list(pool.map(lambda c: place.create("parts/a.json", c), contents))
    assert sum(won) == 1
    assert pathlib.Path(place.path("parts/a.json")).read_bytes() == contents[won.index(True)]
    assert not place.create("parts/a.json", b"x")
    assert place.names("parts") == ["a.json"]
    place.remove(["parts/a.json", "parts/b.json"])
    assert not place.exists("parts/a.json") and not os.path.exists(place.path("parts/a.json"))


def test_a_file_appears_whole_or_not_at_all(place):
    place.claim("store")
    place.claim("store")
    with pytest.raises(ZeroDivisionError), place.writing("a.npy") as out:
        out.write(b"x")
        raise ZeroDivisionError
    assert not place.exists("a.npy")
    with place.writing("a.npy") as out:
        np.save(out, np.arange(3.0))
    assert np.load(place.path("a.npy")).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"store|holds"):
        place.claim("index")


def test_a_folder_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    place = places.at(tmp_path)
    assert place.create("a", b"1") and not place.create("a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1" and os.listdir(tmp_path) == ["a"]


def test_a_store_in_object_storage_is_read_and_indexed(s3, tmp_path, points):
    from stores import items

    plan = parts.Plan({"checkpoint_sha256": "w"}, "float32", 2, 400, 100, 1)

    def rows(batches):
        for n in batches:
            yield items(points[n * 100 : n * 100 + 100], n * 100), []

    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # two for each shard
        done = list(pool.map(lambda n: parts.fill(f"{s3}/store", plan, n % 2, rows), range(4)))
    assert sum(done) == 400
    assert parts.finish(f"{s3}/store") == parts.finish(f"{s3}/store")
    np.testing.assert_array_equal(store.read(f"{s3}/store").embeddings, points[:400])
    index.build(f"{s3}/store", tmp_path / "i", "Flat")
    assert index.manifest_of(tmp_path / "i")["count"] == 400


def test_what_cannot_be_reached_is_one_line(s3):
    with pytest.raises(OSError) as raised:
        store.is_complete("s3://no-such-bucket/x") or places.at("s3://no-such-bucket/x").create(
            "a", b""
        )
    assert "\n" not in str(raised.value) and raised.value.filename.startswith("s3://no-such")
    with pytest.raises(ValueError, match=r"^nowhere://x: cannot be opened: "):
        places.at("nowhere://x")
    assert files.kind_of("s3://no-such-bucket/x") is None and not os.path.exists("s3:")
