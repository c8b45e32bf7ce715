"""Shards by the program, one process after the other, and on Ray."""

import os

import actors
import numpy as np
import pytest
from stores import run_program

from retrieval import embed
from retrieval.embeddings import engine, store


@pytest.fixture(scope="module")
def line(colors, mean_color):
    how = [f"--saved_model={mean_color}", "--input_range=0,255", "--batch_size=2"]
    return [*how, f"--manifest={colors}/shop.csv"]


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "s"
    assert run_program(embed, *line, f"--output={folder}") == 0
    return store.read(folder)


def assert_same(folder, whole):
    found = store.read(folder)
    np.testing.assert_array_equal(found.embeddings, whole.embeddings)
    for field in ("ids", "products", "categories", "paths", "hashes"):
        np.testing.assert_array_equal(getattr(found, field), getattr(whole, field))


def test_shards_by_the_program_equal_one_process(line, whole, tmp_path, capsys):
    at = f"--output={tmp_path}/s"
    for shard in (2, 0):
        assert run_program(embed, *line, at, f"--shard={shard}/3") == 0
    assert f"shard 0/3 is committed, {len(whole) // 3} embeddings" in capsys.readouterr().out
    assert run_program(embed, at, "--finish") == 1
    assert "1 of 3 shards missing: 1/3 (rows 4 to 7)" in capsys.readouterr().err
    assert run_program(embed, *line, at, "--shard=0/2") == 1
    assert "being filled in 3 shards, which 2 would overlap" in capsys.readouterr().err
    assert run_program(embed, *line, at, "--shard=1/3", "--where=product=red") == 1
    assert "contains embeddings of other images" in capsys.readouterr().err
    assert run_program(embed, *line, at, "--shard=1/3") == 0
    assert run_program(embed, at, "--finish") == 0
    assert capsys.readouterr().out.endswith(f"{len(whole)} x 3 float32\n")
    assert_same(tmp_path / "s", whole)
    assert run_program(embed, *line, at, "--shard=1/3") == 0
    assert "complete, 0 embeddings by this process" in capsys.readouterr().out


def test_object_storage_takes_a_whole_listing(line, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run_program(embed, *line, "--output=memory://engine/s", "--shard_rows=4") == 0
    assert_same("memory://engine/s", whole)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shard=3/3"], "--shard=3/3: takes i/n with i from 0 to n - 1"),
        (["--shard=x"], "--shard=x: takes i/n"),
        (["--shard=0/2", "--finish"], "--shard and --finish: give one of them"),
        (["--workers=2"], "--workers: goes with --engine=ray"),
    ],
)
def test_flags_that_clash_are_refused(line, tmp_path, capsys, given, said):
    assert run_program(embed, *line, f"--output={tmp_path}/s", *given) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_ray_starts_actors_again_in_mid_shard_and_completes_what_others_began(
    line, whole, tmp_path, capsys, monkeypatch
):
    """The result is that of one process, though an actor is killed between two batches."""
    monkeypatch.setattr(engine, "Worker", actors.Killed)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(actors.__file__))
    line = [*line, f"--output={tmp_path}/s", "--shard_rows=2"]
    assert run_program(embed, *line, "--shard=1/3") == 0
    assert run_program(embed, *line, "--engine=ray", "--workers=1") == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"{len(whole)} x 3 float32\n")
    assert "shard 1/3: 0 embeddings" in err and "shard 2/3: 4 embeddings" in err
    assert (tmp_path / "s.killed").exists()
    assert_same(tmp_path / "s", whole)
