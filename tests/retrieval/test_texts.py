"""Searches by words: programs, the server and the evaluation, over an index with a text tower."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from stores import run_program

from retrieval import eval, search
from retrieval.catalogue.opened import Catalogue

ROOT = pathlib.Path(__file__).parents[2]


def test_the_folder_alone_is_searched_by_words_without_tensorflows_package(worded, tmp_path):
    shutil.copytree(worded / "i", tmp_path / "copied")
    code = (
        "import sys; from retrieval import search\n"
        "try: search.run(['search', *sys.argv[1:]])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'tensorflow', 'keras', 'keras_hub'} & sys.modules.keys()"
    )
    words = ["blue red blue", f"{worded}/red.png", "--text=green.png", "green"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--index=copied", "--k=1", "--page=p.html"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    best = {answer["query"]: answer["results"][0]["product"] for answer in found}
    # Photos first; then words, by their order.
    assert list(best) == [words[1], "blue red blue", "green", "green.png"]
    assert list(best.values()) == ["red", "blue", "green", "green"]
    assert "there is no file 'green': searching for it as text" in done.stderr
    assert "blue red blue" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize("name", ("gren.png", "photos/green", "green.pgn", f"no/such {os.sep}x"))
def test_a_mistyped_file_is_not_taken_for_words(worded, name, capsys):
    assert run_program(search, name, "red", f"--index={worded}/i", "--k=1") == 1
    out, err = capsys.readouterr()
    assert f"error: cannot read the image {name!r}: no such file" in err
    assert json.loads(out)["query"] == "red"


def test_an_index_without_a_text_tower_says_why(worded, capsys):
    assert run_program(search, "red dress", f"{worded}/red.png", f"--index={worded}/plain") == 1
    out, err = capsys.readouterr()
    assert (
        "error: 'red dress' is not a file, and cannot be searched as text: the model has no" in err
    )
    assert len(out.splitlines()) == 1
    assert run_program(search, "--text=red", f"--index={worded}/headed") == 1
    assert "error: --text=red: the head was trained on images\n" in capsys.readouterr()[1]
    assert run_program(search, "--text= ", f"--index={worded}/i") == 1
    assert "--text is empty" in capsys.readouterr()[1]


def test_a_damaged_text_tower_and_a_missing_library_are_named(worded, tmp_path, monkeypatch):
    shutil.copytree(worded / "i", tmp_path / "i")
    with monkeypatch.context() as patch, Catalogue.open(tmp_path / "i") as catalogue:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ValueError, match=r"needs tokenizers: pip install 'prototrain\[text\]'"):
            catalogue.text_embedder()
    path = tmp_path / "i/versions/000001/model/text/assets/tokenizer.json"
    path.write_text(path.read_text().replace("red", "den"))
    with Catalogue.open(tmp_path / "i") as catalogue:
        catalogue.embedder().close()  # images need no words
        with pytest.raises(
            ValueError, match=r"tokenizer.json: is damaged \(its checksum differs\)"
        ):
            catalogue.text_embedder()


def test_texts_are_evaluated_against_an_index(worded, tmp_path, capsys):
    queries = tmp_path / "q.csv"
    queries.write_text("text,label\nred red,red\nblue,blue\nblue,green\n")
    line = [f"--text_queries={queries}", f"--catalogue={worded}/i", f"--output={tmp_path}/out"]
    assert run_program(eval, *line) == 0
    figures = json.loads((tmp_path / "out/texts-eval.json").read_text())
    assert figures["recall@k"]["1"] == pytest.approx(2 / 3)
    assert "text: blue (line 4)" in (tmp_path / "out/texts-queries.csv").read_text()
    for content, message in (
        ("text\nred\n", "q.csv: has no column 'label': give a header, text,label"),
        ("text,label\nred,\n", "q.csv:2: label is empty"),
        ("text,label\n", "q.csv: has a header but no row"),
    ):
        queries.write_text(content)
        assert run_program(eval, *line) == 1
        assert message in capsys.readouterr()[1]
    assert run_program(eval, line[0], f"--catalogue={worded}/s", line[2]) == 1
    assert "is not an index, which contains the model for texts" in capsys.readouterr()[1]
    assert run_program(eval, *line, "--model=models.simple") == 1
    assert "--model has no effect: --text_queries with --catalogue" in capsys.readouterr()[1]
