"""Atomic writing, locks, marks, and removing only what this project wrote."""

import json
import os

import pytest

from trainer import files


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.published(path, "w") as out:
        out.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": float("nan"), 1: [float("inf"), 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "1": [None, 2]}


def test_a_second_writer_is_refused_by_name(tmp_path):
    refused = pytest.raises(BlockingIOError, match=str(os.getpid()))
    with files.only_writer(tmp_path), refused, files.only_writer(tmp_path):
        pass


def test_a_folder_with_content_of_others_is_not_claimed(tmp_path):
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'holiday\.jpg'"):
        files.claim(tmp_path, "index")
    assert os.listdir(tmp_path) == ["holiday.jpg"]


def test_a_folder_of_another_kind_is_not_claimed(tmp_path):
    files.claim(tmp_path, "store")
    files.claim(tmp_path, "store")
    with pytest.raises(ValueError, match="is the folder of a store and is not"):
        files.claim(tmp_path, "index")


def test_only_matching_files_of_a_marked_folder_are_removed(tmp_path):
    files.claim(tmp_path / "f", "experiment")
    inside = tmp_path / "f" / "checkpoint"
    inside.mkdir()
    (tmp_path / "f" / "empty").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model-2.index").write_text("not ours")
    (inside / "model-1.index").write_text("")
    (inside / "notes.txt").write_text("mine")
    (inside / "model-3.index").symlink_to(elsewhere / "model-2.index")
    (inside / "linked").symlink_to(elsewhere)
    stayed = files.remove(tmp_path / "f", "experiment", r"checkpoint/model-\d+\.index")
    assert stayed == ["checkpoint/linked", "checkpoint/notes.txt"]
    assert sorted(os.listdir(inside)) == ["linked", "notes.txt"]
    assert (elsewhere / "model-2.index").read_text() == "not ours"
    assert (tmp_path / "f" / "empty").exists()


def test_a_folder_goes_once_it_is_empty(tmp_path):
    files.claim(tmp_path, "index")
    (tmp_path / "versions" / "000001" / "blocks").mkdir(parents=True)
    (tmp_path / "versions" / "000001" / "blocks" / "0.faiss").write_text("")
    (tmp_path / "versions" / "000002").mkdir()
    assert files.remove(tmp_path, "index", "versions/00000[12]/.*") == []
    assert not (tmp_path / "versions" / "000001").exists()


def test_nothing_is_removed_without_the_mark(tmp_path):
    (tmp_path / "model-1.index").write_text("")
    with pytest.raises(ValueError, match="does not carry the mark of an experiment"):
        files.remove(tmp_path, "experiment", ".*")
    assert os.listdir(tmp_path) == ["model-1.index"]
