"""Exports to Milvus: nothing lost or doubled by kills, published by one switch of an alias."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import milvus_lite.server_manager  # noqa: F401 (now, not while output is captured)
import numpy as np
import pymilvus
import pytest
from stores import items, run_program, write_store

from retrieval import index as program
from retrieval.catalogue import index, milvus, milvus_export
from retrieval.catalogue.opened import Catalogue

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def lite(tmp_path):
    """The address of a new Milvus Lite."""
    text = f"milvus:{tmp_path}/lite#shop"
    yield text
    milvus.release(milvus.Address.parse(text))


@pytest.fixture
def folder(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points)])
    index.build(source, tmp_path / "i", "Flat")
    return tmp_path / "i"


def collections(lite):
    return sorted(milvus.client(milvus.Address.parse(lite)).list_collections())


def test_versions_are_published_by_the_alias_and_the_last_three_kept(
    folder, lite, points, tmp_path, capsys
):
    line = ["export", f"--index={folder}", f"--to={lite}"]
    assert run_program(program, *line) == 0
    assert "version 1, 600 items (600 added now), in shop_v000001_" in capsys.readouterr().out
    assert run_program(program, *line) == 0  # the same index
    assert "version 1, 600 items (0 added now)" in capsys.readouterr().out
    gone = items(points).ids[:3].tolist()
    index.remove(gone, folder)
    for version in range(2, 6):
        index.add(write_store(tmp_path / f"{version}", [items(points[:1], 900 + version)]), folder)
        assert milvus_export.export(folder, lite)["version"] == version
    assert [name[:12] for name in collections(lite)] == [
        "shop_about",
        *(f"shop_v00000{n}" for n in (3, 4, 5)),
    ]
    with Catalogue.open(lite) as found:
        assert found.version == 5 and found.manifest["count"] == 601
        assert found.item(gone[0]) is None
        assert found.item(items(points[:1], 905).ids[0])["product"] == "p452"


KILLED = """
import os, sys, pymilvus
from retrieval.catalogue import milvus_export
milvus_export.BLOCK = 50
calls, real = [], pymilvus.MilvusClient.upsert
def upsert(self, *arguments, **options):
    real(self, *arguments, **options)
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
pymilvus.MilvusClient.upsert = upsert
milvus_export.export(sys.argv[1], sys.argv[2])
"""


def test_a_kill_in_mid_export_loses_and_doubles_nothing(folder, lite, points):
    """Once in the middle, once after the last item: nothing is published until the end."""
    for calls in (5, 7):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), lite, str(calls)],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="has no catalogue"):
        milvus.current(lite)
    about = milvus_export.export(folder, lite)
    assert about["count"] == 600 and about["added"] == 0
    assert len(collections(lite)) == 2
    with Catalogue.open(lite) as found:
        nearest = found.find(points, 1)
        names = np.array(nearest.items["id"].to_pylist())[nearest.rows[:, 0]]
        np.testing.assert_array_equal(names, items(points).ids)


def test_what_goes_wrong_is_one_line_and_the_version_stays(
    folder, lite, points, tmp_path, capsys, monkeypatch
):
    def said(*line):
        assert run_program(program, *line) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    milvus_export.export(folder, lite)
    index.remove(items(points).ids[:1].tolist(), folder)
    line = ["export", f"--index={folder}"]
    with monkeypatch.context() as patch:
        patch.setattr(milvus, "count_of", lambda *_: 5)
        assert "has 5 of 599 items: export again; the alias is unchanged" in said(
            *line, f"--to={lite}"
        )
    assert milvus.version_of(milvus.current(lite)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(type(milvus.client(milvus.Address.parse(lite))), "upsert", _full)
        error = said(*line, f"--to={lite}")
        assert "no space left on device" in error and lite in error
    with monkeypatch.context() as patch:
        patch.setattr(type(milvus.client(milvus.Address.parse(lite))), "flush", _late)
        assert f"{lite}: cannot be read or written: Deadline" in said(*line, f"--to={lite}")
    assert milvus.version_of(milvus.current(lite)) == 1
    assert milvus_export.export(folder, lite)["count"] == 599
    assert "cannot be read or written" in said(*line, "--to=milvus:http://127.0.0.1:9#x")
    assert "has no place" in said(*line, "--to=milvus:")
    assert "is not a name" in said(*line, "--to=milvus:a#b-c")
    assert "names the place already" in said(*line, f"--to={lite}", "--output=x")
    long = dataclasses.replace(items(points[:2]), ids=np.array(["x" * 70_000, "y"]))
    index.build(write_store(tmp_path / "l", [long]), tmp_path / "long", "Flat")
    assert "ids of 70000 bytes: Milvus takes 65535" in said(
        "export", f"--index={tmp_path}/long", f"--to={lite}"
    )


def _late(*_, **__):
    import grpc

    error = grpc.RpcError()
    error.details = lambda: "Deadline Exceeded"
    raise error


def _full(*_, **__):
    raise pymilvus.MilvusException(1, "rocksmq: no space left on device")
