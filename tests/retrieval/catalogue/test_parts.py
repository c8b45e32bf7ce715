"""An index in parts: it finds what one index finds, and refuses what does not fit."""

import os
import pathlib
import shutil
import subprocess
import sys

import crash
import numpy as np
import pytest
from stores import items, numbers, run_program, write_store

from retrieval import index as program
from retrieval.catalogue import index, inverted_lists, neighbours, parts, reading
from retrieval.catalogue.opened import Catalogue
from trainer import files

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def source(points, tmp_path_factory):
    """A store in two files."""
    made = [items(points[:150]), items(points[150:], 150)]
    return write_store(tmp_path_factory.mktemp("source") / "s", made)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "i"
    parts.train(source, folder, "IVF8,SQ8", memory=2**20)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return pathlib.Path(shutil.copytree(trained, tmp_path / "i"))


def add_all(source, folder, of=3):
    for part in reversed(range(of)):
        parts.add(source, folder, part, of)


def left(folder):
    return sorted(p.name for p in folder.iterdir()) + sorted(
        str(p.relative_to(folder)) for p in folder.glob("parts/**/*")
    )


def everything(folder, points):
    """What a search of all lists finds, as numbers of items, and the scores."""
    with Catalogue.open(folder, everything=True) as found:
        most = neighbours.effort(found.index, 8)
        scores, rows = neighbours.search(found.index, points[:50], 10, "cosine", most)
        names = np.array([int(name[1:5]) for name in found.items["id"].to_pylist()])
        return names[rows], scores


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_parts_find_what_one_index_finds(source, points, tmp_path, similarity, apart):
    """With the same training, which `build` draws from the same seed."""
    one, several = tmp_path / "one", tmp_path / "several"
    index.build(source, one, "IVF8,SQ8", similarity=similarity)
    parts.train(source, several, "IVF8,SQ8", similarity=similarity)
    add_all(source, several)
    manifest = parts.merge(several, apart=apart)
    assert manifest["count"] == len(points) and manifest.get("parts") == (3 if apart else None)
    expected, scores = everything(one, points)
    found, others = everything(several, points)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(others, scores)
    assert left(several) == [".lock", ".prototrain", "current", "versions"]


def test_a_catalogue_in_parts_searches_filters_and_changes_like_any_other(
    source, folder, points, tmp_path
):
    add_all(source, folder)
    shutil.copytree(folder, tmp_path / "merged")
    parts.merge(folder, apart=True)
    parts.merge(tmp_path / "merged")
    with Catalogue.open(folder) as apart, Catalogue.open(tmp_path / "merged") as merged:
        assert isinstance(apart.index, inverted_lists.Stacked)
        for how in ({}, {"category": "odd"}, {"by_product": True}, {"threshold": 0.9}):
            a, b = (c.find(points[:20], 7, **how) for c in (apart, merged))
            np.testing.assert_array_equal(a.rows, b.rows)
            np.testing.assert_array_equal(a.scores, b.scores)
        name = items(points).ids[-1]
        assert apart.find_like([name], 3).rows.tolist() == merged.find_like([name], 3).rows.tolist()
    index.remove([name], folder)
    more = write_store(tmp_path / "more", [items(points[:5] + 1, 900)])
    manifest = index.add(more, folder)
    assert "parts" not in manifest and manifest["count"] == len(points) + 4
    with Catalogue.open(folder, everything=True) as changed:
        assert numbers(changed, changed.find(points[:5] + 1, 1)).ravel().tolist() == [
            *range(900, 905)
        ]


def test_a_part_elsewhere_by_the_program_within_its_memory(
    source, folder, points, capsys, tmp_path
):
    """On another machine, with copies of the store and of what was trained."""
    there = tmp_path / "there"
    shutil.copytree(folder, there)
    shutil.copytree(source, tmp_path / "copy")
    line = ["add", f"--store={tmp_path}/copy", "--memory=0.0001"]
    assert run_program(program, *line, f"--index={there}", "--part=1/2") == 0
    assert "part 1/2 is there, rows 200 to 399" in capsys.readouterr().out
    assert run_program(program, *line, f"--index={there}", "--part=1/2") == 0
    shutil.copytree(there / "parts" / "00001-of-00002", folder / "parts" / "00001-of-00002")
    assert run_program(program, *line, f"--index={folder}", "--part=0/2") == 0
    assert run_program(program, "merge", f"--index={folder}") == 0
    with Catalogue.open(folder, everything=True) as found:
        assert numbers(found, found.find(points, 1))[:, 0].tolist() == [*range(len(points))]


def test_what_does_not_fit_is_one_line_and_nothing_is_lost(
    source, folder, points, tmp_path, capsys
):
    def said(*line):
        assert run_program(program, *line) == 1
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if not line.startswith("training ")]
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return error

    at = f"--index={folder}"
    assert "run `index train` first" in said(
        "add", f"--store={source}", f"--index={tmp_path}/x", "--part=0/2"
    )
    assert "1 of 1 parts missing: 0/1" in said("merge", at)
    parts.add(source, folder, 0, 3)
    parts.add(source, folder, 2, 3)
    assert "1 of 3 parts missing: 1/3; add it with --part=1/3" in said("merge", at)
    adding = ("add", f"--store={source}", at)
    assert "in 3 parts, which 2 would overlap" in said(*adding, "--part=1/2")
    assert "--part=3/3: takes i/n" in said(*adding, "--part=3/3")
    assert "--memory has no effect" in said(*adding, "--memory=1")
    other = write_store(tmp_path / "o", [items(points[::-1].copy())])
    assert "is not the store" in said("add", f"--store={other}", at, "--part=1/3")
    assert "holds parts of an earlier training" in said(
        "train", f"--store={source}", f"--output={folder}"
    )
    assert "has no inverted lists to merge" in said(
        "train", f"--store={source}", f"--output={tmp_path}/h", "--factory=HNSW8"
    )
    parts.train(source, tmp_path / "other", "IVF4,SQ8")
    parts.add(source, tmp_path / "other", 1, 3)
    foreign = folder / "parts" / "00001-of-00003"
    shutil.copytree(tmp_path / "other" / "parts" / foreign.name, foreign)
    assert "is a part of another training: delete it" in said("merge", at)
    shutil.rmtree(foreign)
    parts.add(source, folder, 1, 3)
    data = foreign / "lists.ivfdata"
    content = data.read_bytes()
    data.write_bytes(content[:-1] + b"?")
    assert "is missing or damaged: delete" in said("merge", at)
    data.write_bytes(content)
    shutil.copytree(foreign, foreign.with_name("00001-of-00004"))
    assert "holds parts of 3 and of 4, which overlap" in said("merge", at)
    shutil.rmtree(foreign.with_name("00001-of-00004"))
    with files.only_writer(folder):
        assert "is writing there" in said("merge", at)
    assert run_program(program, "merge", at) == 0
    assert reading.manifest_of(folder)["count"] == len(points)


def test_an_id_in_two_parts_is_refused(points, tmp_path):
    names = items(points)
    names.ids[300] = names.ids[3]
    source = write_store(tmp_path / "s", [names])
    parts.train(source, tmp_path / "i", "IVF8,SQ8")
    add_all(source, tmp_path / "i", 2)
    with pytest.raises(ValueError, match=r"id 'i0003.*' occurs twice"):
        parts.merge(tmp_path / "i")
    assert len(parts._parts(tmp_path / "i")) == 2


def test_kills_lose_no_part_and_leave_nothing(source, folder, points, tmp_path, monkeypatch):
    parts.add(source, folder, 0, 2)

    def run():
        if not (folder / "current").exists():
            parts.add(source, folder, 1, 2)
        if (folder / "parts").exists():
            parts.merge(folder)

    shutil.copytree(folder, tmp_path / "begun")
    run()
    clean = left(folder)
    folder.rename(tmp_path / "clean")
    shutil.copytree(tmp_path / "begun", folder)
    for count in crash.points(run, monkeypatch):
        if (folder / "current").exists():
            assert reading.manifest_of(folder)["count"] == len(points)
        run()
        assert reading.manifest_of(folder)["count"] == len(points)
        # A version that was whole, but not yet current, is kept as an earlier one.
        assert left(folder) == clean and len(list((folder / "versions").iterdir())) <= 2
        folder.rename(tmp_path / f"{count}")
        shutil.copytree(tmp_path / "begun", folder)


def test_two_processes_with_the_same_part(source, folder, points):
    code = (
        f"from retrieval.catalogue import parts; parts.add({str(source)!r}, {str(folder)!r}, 0, 1)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
        for _ in range(2)
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    assert [p.name for p in (folder / "parts").iterdir() if p.is_dir()] == ["00000-of-00001"]
    assert parts.merge(folder)["count"] == len(points)
