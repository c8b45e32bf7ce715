"""CSV files: nothing that a spreadsheet runs, and everything as it was when read back."""

import csv
import os
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import tables

ROOT = pathlib.Path(__file__).parents[2]
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
cells = text | st.builds("".join, st.lists(st.sampled_from("=+-@'\t\r\n,\"1e. a"), max_size=5))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "a.csv"


@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=4))
def test_cells_run_nothing_and_come_back(path, rows):
    tables.write_csv(path, ["x", "y"], rows)
    assert [list(row.values()) for row in tables.read_csv(path)] == rows
    with open(path, newline="") as file:
        for cell in [cell for row in csv.reader(file) for cell in row]:
            harmless = not re.match(r"[=+\-@\t\r\n]", cell)
            assert harmless or re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell), cell


def test_numbers_stay_numbers(path):
    tables.write_csv(path, ["a", "b"], [[-1, "-0.250000"], [-1e-30, "+3"], ["-1+1", "-"]])
    lines = path.read_text().splitlines()
    assert lines[1:] == ["-1,-0.250000", "-1e-30,+3", "'-1+1,'-"]


def test_a_damaged_file_is_an_error(path):
    path.write_text('x,y\n1,"2')
    with pytest.raises(ValueError):
        list(tables.read_csv(path))
    path.write_text("x,y\n1\n")
    with pytest.raises(ValueError):
        list(tables.read_csv(path))


def test_no_other_code_writes_csv():
    packages = ("trainer", "metriclearn", "retrieval", "models")
    found = [p for package in packages for p in (ROOT / package).rglob("*.py")]
    writers = {
        str(p.relative_to(ROOT)) for p in found if re.search(r"csv\.\w*[wW]riter", p.read_text())
    }
    assert writers == {os.path.join("trainer", "tables.py")}
