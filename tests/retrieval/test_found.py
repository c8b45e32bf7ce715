"""The page of what a search found."""

import json
import os
import re

import numpy as np
import pyarrow
import pytest
from PIL import Image

from retrieval import index as index_program
from retrieval.catalogue import index
from retrieval.embeddings import store
from retrieval.reports import search_page
from trainer import files


@pytest.fixture
def shop(tmp_path):
    """A store of twelve pictures, one file of which is gone, and its index."""
    points = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    ids = np.array([f"<b>{n}" for n in range(12)])
    paths = np.array([str(tmp_path / f"{n}.png") for n in range(12)])
    for n, path in enumerate(paths[:-1]):
        Image.new("RGB", (60, 40), (20 * n, 0, 255 - 20 * n)).save(path)
    everything = store.Embedded(points, ids, ids, np.full(12, "shoes & more"), paths=paths)
    (tmp_path / "s").mkdir()
    manifest = store.begin(tmp_path / "s", {"checkpoint_sha256": "w"})
    store.append(tmp_path / "s", manifest, everything, 1)
    store.finish(tmp_path / "s", manifest)
    index.build(tmp_path / "s", tmp_path / "i", "Flat")
    return tmp_path


def search(shop, *more):
    index_program.run(["search", f"--store={shop}/s", f"--index={shop}/i", *more])


def test_a_search_shows_its_pictures(shop, capsys, monkeypatch):
    search(shop, "--k=3", f"--page={shop}/found.html")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 12 and all(len(answer["results"]) == 3 for answer in answers)
    page = (shop / "found.html").read_text()
    figures = re.findall(r"<figure.*?</figure>", page)
    assert len(figures) == 12 * 4 and "queries." not in page
    for answer, shown in zip(answers, np.split(np.array(figures), 12), strict=True):
        wanted = [answer["query"], *(result["id"] for result in answer["results"])]
        for name, figure in zip(wanted, shown, strict=True):
            assert f'title="&lt;b&gt;{name[3:]}"' in figure
            assert ("<em>?</em>" if name == "<b>11" else "data:image/") in figure
        assert f"{answer['results'][1]['score']:.3f} shoes &amp; more" in shown[2]
    monkeypatch.setattr(search_page, "QUERIES", 2)
    search(shop, "--k=3", f"--page={shop}/found.html")
    page = (shop / "found.html").read_text()
    assert "The first 2 of 12 queries." in page and page.count("<figure") == 2 * 4


def test_a_page_that_cannot_be_written_is_one_line(shop, capsys):
    with pytest.raises(SystemExit):
        search(shop, f"--page={shop}/none/found.html")
    assert re.fullmatch(r"error: .*none/.*\n", capsys.readouterr().err)


def test_an_index_of_other_columns_is_refused(shop):
    """Such as those written before items had paths."""
    (version,) = (shop / "i" / "versions").iterdir()
    items = pyarrow.ipc.open_file(str(version / "items.arrow")).read_all().drop_columns("path")
    with pyarrow.ipc.new_file(str(version / "items.arrow"), items.schema) as out:
        out.write_table(items)
    manifest = files.read_json(version / "manifest.json")
    manifest["bytes"]["items.arrow"] = os.path.getsize(version / "items.arrow")
    manifest["sha256"]["items.arrow"] = files.sha256(version / "items.arrow")
    files.write_json(version / "manifest.json", manifest)
    with pytest.raises(ValueError, match="written by another version.*build anew"):
        index.load(shop / "i")
