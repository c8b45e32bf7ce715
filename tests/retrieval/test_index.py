"""The program `retrieval.index`."""

import dataclasses
import json

import numpy as np
from stores import items, run_program, write_store

from retrieval import index as index_program
from retrieval.catalogue import index


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
