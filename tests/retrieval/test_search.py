"""The program `retrieval.search`."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import webbrowser

import numpy as np
import pytest
from PIL import Image
from stores import run_program, write_store

from retrieval import build, search
from retrieval.catalogue import index
from retrieval.embeddings import store

ROOT = pathlib.Path(__file__).parents[2]


def answers(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_photos_find_their_products(colors, capsys, monkeypatch):
    """Named, in a folder, on standard input; the second search is as good as the first."""
    photos = [f"{colors}/{name}-0.jpg" for name in ("red", "blue")]
    for photo in photos:
        assert run_program(search, photo, f"--index={colors}/../i", "--k=3") == 0
        (answer,) = answers(capsys)
        name = os.path.basename(photo).split("-")[0]
        assert answer["query"] == photo
        assert [item["product"] for item in answer["results"][:2]] == [name] * 2
        assert [item["rank"] for item in answer["results"]] == [1, 2, 3]
        first = answer["results"][0]
        assert first.keys() == {"rank", "id", "product", "category", "score", "path"}
        assert first["score"] > 0.9 and os.path.isfile(first["path"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos[1]}\r\n\n{photos[0]}\n"))
    assert run_program(search, "-", photos[0], f"--index={colors}/../i", "--k=1") == 0
    assert [answer["query"] for answer in answers(capsys)] == [photos[1], photos[0], photos[0]]
    assert run_program(search, colors, f"--index={colors}/../i", "--k=1", "--threshold=-1") == 0
    found = answers(capsys)
    assert len(found) == 12
    assert all(a["results"][0]["product"] in a["query"] for a in found)


def test_the_folder_alone_is_searched_without_importing_tensorflow(colors, tmp_path):
    shutil.copytree(colors.parent / "i", tmp_path / "copied")
    shutil.copy(colors / "green-0.jpg", tmp_path / "photo.jpg")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "damaged.jpg")
    data = bytearray((tmp_path / "damaged.jpg").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60] = b"\xff" * 60  # of which libjpeg complains itself
    (tmp_path / "damaged.jpg").write_bytes(data)
    code = (
        "import sys; from retrieval import search\n"
        "try: search.run(['search', *sys.argv[1:]])\n"
        "except SystemExit as ended: status = ended.code\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'tensorboard', 'tensorflow_hub', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "photo.jpg", "damaged.jpg", "--index=copied", "--k=1"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["results"][0]["product"] == "green"
    assert done.returncode == 1
    assert re.fullmatch(r"error: cannot read the image 'damaged.jpg': .*\n\[\]\n", done.stderr)


def test_an_item_finds_the_items_like_it(colors, capsys):
    line = ["--item=red-1.png", "--item=gray-2.png", f"--index={colors}/../i"]
    assert run_program(search, *line, "--k=2") == 0
    red, gray = answers(capsys)
    assert red["query"] == "red-1.png" and red["results"][0]["id"] == "red-2.png"
    assert "red-1.png" not in [item["id"] for item in red["results"]]
    assert gray["results"][0]["id"] == "gray-1.png"
    assert run_program(search, "--item=red-7.png", f"--index={colors}/../i") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no item of the index has the id 'red-7.png'. Did you mean 'red-")


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_answered(colors, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes((colors / "red-0.jpg").read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("no image")
    paths = [f"{tmp_path}/bad.jpg", f"{tmp_path}/none.jpg", f"{tmp_path}/text.jpg"]
    good = f"{colors}/red-0.jpg"
    assert run_program(search, *paths, good, f"--index={colors}/../i", "--k=1") == 1
    streams = capsys.readouterr()
    assert json.loads(streams.out)["query"] == good
    bad, none, text = streams.err.splitlines()
    assert bad.startswith(f"error: cannot read the image '{tmp_path}/bad.jpg': the file is trunc")
    assert none == f"error: cannot read the image '{tmp_path}/none.jpg': no such file"
    assert text.endswith("text.jpg': not a JPEG, PNG, GIF, BMP, WebP or TIFF file")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: Give a photo, a folder of photos, - for paths on standard input, words (if"),
        (["{photo}", "--item=red-1.png"], "error: Give a photo, "),
        (["{photo}", "--category=brigth"], "is of category 'brigth'. Did you mean 'bright'?"),
        (["{photo}", "--category=shoes"], "category 'shoes'. It has bright, neutral."),
        (["{photo}", "--k=0"], "--k"),
        (["{photo}", "--threshold=95"], "--threshold=95: similarities are between -1 and 1"),
        (["-"], "error: -: standard input contains no path; give one path per line"),
        (["{empty}"], "contains no image"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    colors, tmp_path, capsys, monkeypatch, arguments, said
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    places = {"photo": colors / "red-0.jpg", "empty": tmp_path}
    line = [argument.format(**places) for argument in arguments]
    assert run_program(search, *line, f"--index={colors}/../i") == 1
    streams = capsys.readouterr()
    assert said in streams.err and streams.err.count("\n") == 1 and not streams.out


def test_an_index_that_cannot_answer_is_one_line(colors, points, tmp_path, capsys):
    photo = f"{colors}/red-0.jpg"

    def refused(*arguments):
        assert run_program(search, photo, *arguments) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "--index=INDEX: name the folder" in refused()
    assert "no such folder; make one with `prototrain build`" in refused(f"--index={tmp_path}/x")
    assert "is not an index; make one with" in refused(f"--index={colors}")
    # Of stored embeddings, without a model.
    items = store.Embedded(points[:9], *[points[:9, 0].astype(str)] * 3)
    index.build(write_store(tmp_path / "s", [items]), tmp_path / "i", "Flat")
    said = f"{tmp_path}/i: contains no model to embed a photo with: build it again with"
    assert said in refused(f"--index={tmp_path}/i")
    # A model that was exchanged or damaged.
    shutil.copytree(colors.parent / "i", tmp_path / "j")
    note = tmp_path / "j/versions/000001/model/assets.extra/prototrain.json"
    note.write_text(note.read_text().replace('"features": 3', '"features": 4'))
    assert f"{note}: is damaged (its checksum differs); build it again" in refused(
        f"--index={tmp_path}/j"
    )
    note.unlink()
    assert f"{note}: is missing from its index" in refused(f"--index={tmp_path}/j")


def test_more_results_than_items_are_all_items(colors, capsys):
    photo = f"{colors}/red-0.jpg"
    assert run_program(search, photo, f"--index={colors}/../i", "--k=5000") == 0
    streams = capsys.readouterr()
    assert len(json.loads(streams.out)["results"]) == 8
    assert streams.err == "note: --k=5000: the index holds 8 items\n"


def test_no_match_above_the_threshold_says_what_was_nearest(colors, tmp_path, capsys):
    Image.new("RGB", (30, 30), (200, 200, 0)).save(tmp_path / "yellow.png")
    photos = [f"{tmp_path}/yellow.png", f"{colors}/red-0.jpg"]
    assert run_program(search, *photos, f"--index={colors}/../i", "--threshold=0.95") == 0
    streams = capsys.readouterr()
    yellow, red = map(json.loads, streams.out.splitlines())
    assert yellow["results"] == []
    assert {item["product"] for item in red["results"]} == {"red"}
    assert streams.err.startswith(f"{photos[0]}: no match above --threshold=0.95; the nearest item")


def test_one_result_per_product_and_within_a_category(colors, capsys):
    photo = f"{colors}/blue-0.jpg"
    line = [photo, f"--index={colors}/../i", "--by_product", "--category=bright"]
    assert run_program(search, *line) == 0
    (answer,) = answers(capsys)
    products = [item["product"] for item in answer["results"]]
    assert products[0] == "blue" and sorted(products) == ["blue", "green", "red"]


def test_the_page_shows_what_was_found(colors, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = tmp_path / "found.html"
    line = [f"{colors}/red-0.jpg", f"--index={colors}/../i", "--k=2"]
    assert run_program(search, *line, f"--page={page}", "--open") == 0
    assert page.read_text().count("<figure") == 3 and opened == [f"file://{page}"]
    assert run_program(search, "--item=red-1.png", f"--index={colors}/../i", "--k=2", "--open") == 0
    assert len(opened) == 2 and capsys.readouterr().err.count("images of the results") == 2


def test_a_new_version_keeps_or_replaces_the_model(colors, mean_color, tmp_path, capsys):
    """Items are removed, and the index is built anew, while the model stays one with it."""
    folder = tmp_path / "i"
    shutil.copytree(colors.parent / "i", folder)
    index.remove(["red-1.png", "red-2.png"], folder)
    photo = f"{colors}/red-0.jpg"
    assert run_program(search, photo, f"--index={folder}", "--k=1") == 0
    assert answers(capsys)[0]["results"][0]["product"] != "red"
    line = [f"--saved_model={mean_color}", "--input_range=0,1", f"--folder={colors}"]
    for _ in range(3):
        assert run_program(build, *line, f"--output={folder}") == 0
    assert sorted(os.listdir(folder / "versions")) == ["000003", "000004", "000005"]
    assert sorted(os.listdir(folder)) == [".lock", ".prototrain", "current", "versions"]
    capsys.readouterr()
    assert run_program(search, photo, f"--index={folder}", "--k=1") == 0
    assert answers(capsys)[0]["results"][0]["id"] == "red-0.jpg"
