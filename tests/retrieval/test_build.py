"""The program `retrieval.build`."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from stores import run_program

from metriclearn.datasets import ProductTable
from retrieval import build, search
from retrieval.catalogue import index
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings import store

pytestmark = pytest.mark.numeric


def ids(folder):
    with Catalogue.open(folder) as catalogue:
        return catalogue.items["id"].to_pylist()


def test_a_models_whole_catalogue_is_indexed_with_the_model(
    tiny_model, tmp_path, capsys, monkeypatch
):
    """Of all splits, without queries; a photo of an item then finds it in the folder alone."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 8, 8, 1), np.uint8)
    rows = ProductTable(
        products=list("abcabcabc"),
        ids=[f"i{n}" for n in range(9)],
        splits=["train", "val", "test"] * 3,
        roles=["catalogue"] * 6 + ["query"] * 3,
        images=pixels,
    )
    monkeypatch.setattr(tiny_model, "table", lambda: rows, raising=False)
    assert run_program(build, "--model=tiny", f"--output={tmp_path}/i") == 0
    out = capsys.readouterr().out
    assert "catalogue: 6 images of 3 products\n" in out
    assert f"search it: prototrain search photo.jpg --index={tmp_path}/i\n" in out
    assert ids(tmp_path / "i") == [f"i{n}" for n in range(6)]
    Image.fromarray(pixels[4, :, :, 0]).save(tmp_path / "photo.png")
    assert run_program(search, tmp_path / "photo.png", f"--index={tmp_path}/i") == 0
    best = json.loads(capsys.readouterr().out)["results"][0]
    assert best["id"] == "i4" and best["score"] == pytest.approx(1, abs=1e-6)
    assert index.manifest_of(tmp_path / "i")["weights"]


def test_a_model_without_a_table_gives_its_test_catalogue(tiny_model, tmp_path, capsys):
    assert run_program(build, "--model=tiny", f"--output={tmp_path}/i") == 0
    assert "tiny has no table(): the catalogue is its retrieval_index" in capsys.readouterr().err
    assert len(ids(tmp_path / "i")) == 25


def test_where_chooses_among_all_rows(colors, mean_color, tmp_path):
    line = [f"--saved_model={mean_color}", "--input_range=0,1", f"--manifest={colors}/shop.csv"]
    assert run_program(build, *line, "--where=role=query", f"--output={tmp_path}/i") == 0
    assert ids(tmp_path / "i") == [f"{name}-0.jpg" for name in ("red", "green", "blue", "gray")]


def test_an_interrupted_build_resumes_or_starts_over_with_other_images(
    colors, mean_color, tmp_path, monkeypatch, capsys
):
    def build_of(folder):
        line = [f"--saved_model={mean_color}", "--input_range=0,1", f"--folder={folder}"]
        return run_program(build, *line, f"--output={tmp_path}/i")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index, "build", killed)
        assert build_of(colors) == 130
    (tmp_path / "i/embeddings/mine.txt").write_text("kept")
    (tmp_path / "some").mkdir()
    for n in range(2):
        shutil.copy(colors / f"red-{n + 1}.png", tmp_path / "some")
    assert build_of(tmp_path / "some") == 0
    assert ids(tmp_path / "i") == ["red-1.png", "red-2.png"]
    assert sorted(os.listdir(tmp_path / "i/embeddings")) == [".lock", ".prototrain", "mine.txt"]
    filled = []
    monkeypatch.setattr(store, "append", lambda *a, f=store.append: filled.append(1) or f(*a))
    with monkeypatch.context() as patch:
        patch.setattr(index, "build", killed)
        assert build_of(colors) == 130 and filled == [1]
    assert build_of(colors) == 0 and filled == [1]
    assert len(ids(tmp_path / "i")) == 12 and index.manifest_of(tmp_path / "i")["version"] == 2


@pytest.mark.parametrize("kind", ["empty", "notes", "missing", "damaged", "queries", "foreign"])
def test_what_cannot_be_built_is_one_line(colors, mean_color, tmp_path, capsys, kind):
    shop, output = tmp_path / "shop", tmp_path / "i"
    given = [f"--folder={shop}"]
    said = {
        "empty": "contains no image",
        "notes": "contains no image",
        "missing": "there is no such folder or image",
        "damaged": "--on_bad_image=skip skips such images",
        "queries": "every image has the role query: there is no catalogue",
        "foreign": "holds 'notes.txt' and is not the folder of an index; give a new or empty",
    }[kind]
    if kind != "missing":
        shop.mkdir()
    if kind == "notes":
        (shop / "notes.txt").write_text("no image")
    if kind in ("damaged", "foreign"):
        shutil.copy(colors / "red-1.png", shop)
        (shop / "bad.png").write_bytes((shop / "red-1.png").read_bytes()[:60])
    if kind == "queries":
        (shop / "shop.csv").write_text(f"path,label,role\n{colors}/red-1.png,red,query\n")
        given = [f"--manifest={shop}/shop.csv"]
    if kind == "foreign":
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    line = [f"--saved_model={mean_color}", "--input_range=0,1", *given, f"--output={output}"]
    assert run_program(build, *line) == 1
    (error,) = [e for e in capsys.readouterr().err.splitlines() if not e.startswith("embedding")]
    assert error.startswith("error: ") and said in error
    assert not (output / "current").exists()
    if kind == "damaged":
        assert run_program(build, *line, "--on_bad_image=skip") == 0
        out = capsys.readouterr().out
        assert "bad.png: the file is truncated" in out and "1 images skipped" in out
        assert ids(output) == ["red-1.png"]


def test_one_product_is_warned_of(colors, mean_color, tmp_path, capsys):
    (tmp_path / "shop/all").mkdir(parents=True)
    for name in ("red-1.png", "blue-1.png"):
        shutil.copy(colors / name, tmp_path / "shop/all")
    line = [f"--saved_model={mean_color}", "--input_range=0,1", f"--folder={tmp_path}/shop"]
    assert run_program(build, *line, f"--output={tmp_path}/i") == 0
    err = capsys.readouterr().err
    assert "warning: all images are of the product 'all', so every photo will find it; " in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model=tiny"], "--output=INDEX: name the folder of the index"),
        (
            ["--output=i"],
            "Give the model that embeds images: --model=NAME, or --saved_model=DIR with",
        ),
        (["--output=i", "--folder=x"], "Give the model that embeds images"),
        (["--output=i", "--saved_model=m"], "Give the model that embeds images"),
        (["--output=i", "--saved_model=m", "--folder=x", "--checkpoint=c"], "give one of them"),
        (["--output=i", "--recall=2"], "--recall=2: Config key 'recall' must be in (0, 1]"),
        (["--output=i", "--memory=-1"], "--memory=-1: Config key 'memory' must be in (0, inf)"),
    ],
)
def test_a_command_line_that_lacks_something_is_one_line(tiny_model, capsys, given, said):
    assert run_program(build, *given) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
