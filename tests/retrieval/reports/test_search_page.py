"""The page of what a search found."""

import json
import re

import numpy as np
from stores import run_program

from retrieval import index as index_program
from retrieval.reports import search_page


def search(shop, *more):
    return run_program(index_program, "search", f"--store={shop}/s", f"--index={shop}/i", *more)


def test_a_search_shows_its_pictures(shop, capsys, monkeypatch):
    assert not search(shop, "--k=3", f"--page={shop}/found.html")
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
    assert not search(shop, "--k=3", f"--page={shop}/found.html")
    page = (shop / "found.html").read_text()
    assert "The first 2 of 12 queries." in page and page.count("<figure") == 2 * 4


def test_a_page_that_cannot_be_written_is_one_line(shop, capsys):
    assert search(shop, f"--page={shop}/none/found.html") == 1
    assert re.fullmatch(r"error: .*/none: .*\n", capsys.readouterr().err)


def test_the_page_fits_the_screen(shop, looks):
    assert not search(shop, "--k=8", f"--page={shop}/found.html")
    for width, look in looks(shop / "found.html").items():
        assert look["wide"] <= int(width), "the page is wider than the screen"
        assert (
            look["titles"] == ["Queries and their nearest items"] and "shoes & more" in look["text"]
        )
