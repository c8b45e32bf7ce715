"""The program `retrieval.index`."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from stores import items, run_program, write_store

from retrieval import compare
from retrieval import eval as evaluator
from retrieval import index as index_program
from retrieval.catalogue import index

ROOT = pathlib.Path(__file__).parents[2]


def test_ids_to_remove_are_lines(tmp_path, points, capsys):
    """With a mark before the first, as some programs write it, and a carriage return after each."""
    rows = items(points[:9])
    names = np.array([f"a\u2028b{n}" for n in range(9)])  # Unicode parts lines there, nobody else
    source = write_store(tmp_path / "s", [dataclasses.replace(rows, ids=names)])
    index.build(source, tmp_path / "i", "Flat")
    line = ["remove", f"--ids={tmp_path}/gone.txt", f"--index={tmp_path}/i"]
    (tmp_path / "gone.txt").write_text(
        "\ufeffa\u2028b1\r\na\u2028b2\r\n", encoding="utf-8", newline=""
    )
    assert run_program(index_program, *line) == 0
    assert "7 items, 2 removed" in capsys.readouterr().out
    for content, said in (
        (b"", "names no ids"),
        (b"a\n\nb\n", "line 2: is empty"),
        (b"\xff", "text"),
    ):
        (tmp_path / "gone.txt").write_bytes(content)
        assert run_program(index_program, *line) == 1
        err = capsys.readouterr().err
        assert "gone.txt" in err and said in err
    assert index.manifest_of(tmp_path / "i")["version"] == 2


def test_answers_stand_alone_on_stdout(tmp_path, points, capfd):
    """FAISS prints, from C, where it finds lists on disk."""
    source = write_store(tmp_path / "s", [items(points)])
    line = ["build", f"--store={source}", f"--output={tmp_path}/i", "--factory=IVF8,SQ8"]
    assert run_program(index_program, *line, "--on_disk") == 0
    queries = write_store(tmp_path / "q", [items(points[:3])])
    capfd.readouterr()
    line = ["search", f"--store={queries}", f"--index={tmp_path}/i", "--k=1"]
    assert run_program(index_program, *line) == 0
    answers = map(json.loads, capfd.readouterr().out.splitlines())
    assert [answer["query"] for answer in answers] == items(points[:3]).ids.tolist()


@pytest.mark.parametrize(
    ("program", "work", "arguments"),
    [
        (index_program, "main", ["info", "--index=i"]),
        (compare, "main", ["a", "b"]),
        (evaluator, "stored", ["--queries=q.npy"]),
    ],
)
def test_an_interrupted_program_says_so_and_exits_with_130(
    program, work, arguments, monkeypatch, capsys
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, work, interrupted)
    assert run_program(program, *arguments) == 130
    assert re.fullmatch(r"Interrupted; .*\n", capsys.readouterr().err)


def test_a_reader_that_has_seen_enough_ends_the_program_quietly(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points)])
    index.build(source, tmp_path / "i", "Flat")
    command = [sys.executable, "-m", "retrieval.index", "search", f"--store={source}"]
    process = subprocess.Popen(
        [*command, f"--index={tmp_path}/i", "--k=100"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read()
    assert "Traceback" not in error and "Exception ignored" not in error
    assert process.wait(60) == 0
