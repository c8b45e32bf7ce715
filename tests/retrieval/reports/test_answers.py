"""What a search found, as a table or as JSON."""

import io
import json
import sys

from retrieval.reports import answers

ITEM = {"rank": 1, "id": "a[b]/1.jpg", "product": "s\x1b[31mhoe", "category": "", "score": 0.5}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_programs_get_a_line_of_json_and_people_a_table(monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    answers.show("photo.jpg", [ITEM])
    text = terminal.getvalue()
    assert all(word in text for word in ("photo.jpg", "0.500", "a[b]/1.jpg", "category")), text
    assert "\x1b[31m" not in text  # text from outside colors nothing
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    answers.show("photo.jpg", [ITEM])
    line = out.getvalue()
    assert json.loads(line) == {"query": "photo.jpg", "results": [ITEM]} and line.count("\n") == 1


def test_no_match_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    answers.show("photo.jpg", [])
    assert terminal.getvalue() == "photo.jpg: no match\n"
