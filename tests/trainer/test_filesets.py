"""Several files appear together."""

import os

import crash
import pytest

from trainer import files, filesets


def write(prefix, text):
    with filesets.together(prefix) as staged:
        for ending in ("a.txt", "b.txt"):
            files.write_text(f"{staged}-{ending}", text)


def contents(folder):
    """{name: text}, without what a kill left."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.name[0] != "."}


def test_a_kill_between_any_two_steps_leaves_the_old_set_or_the_new_one(tmp_path, monkeypatch):
    old, new = ({f"x-{end}.txt": text for end in "ab"} for text in ("old", "new"))
    folders, found = [tmp_path / "0"], []
    write(folders[-1] / "x", "old")
    for count in crash.points(lambda: write(folders[-1] / "x", "new"), monkeypatch):
        folder = folders[-1]
        filesets.settle(folder)
        found.append(contents(folder))
        assert found[-1] in (old, new)
        write(folder / "x", "newest")
        assert contents(folder) == dict.fromkeys(old, "newest")
        assert sorted(os.listdir(folder)) == sorted(old)
        folders.append(tmp_path / str(count + 1))
        write(folders[-1] / "x", "old")
    assert found[0] == old and found[-1] == new and count > 8


def test_an_error_leaves_the_old_set_and_names_the_file_where_it_belongs(tmp_path):
    write(tmp_path / "x", "old")
    before = contents(tmp_path)
    with pytest.raises(OSError, match="No space") as full, filesets.together(tmp_path / "x") as at:
        files.write_text(f"{at}-a.txt", "new")
        raise OSError(28, "No space left on device", f"{at}-b.txt")
    assert full.value.filename == str(tmp_path / "x-b.txt") and contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == sorted(before)


def test_what_is_not_ours_and_what_is_being_written_stays(tmp_path):
    for name in (".holiday.ready", ".holiday.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_text("mine")
    with filesets.together(tmp_path / "x") as staged:
        files.write_text(f"{staged}-a.txt", "first")
        write(tmp_path / "y", "others")
        with pytest.raises(BlockingIOError):
            write(tmp_path / "x", "second")
    names = sorted(os.listdir(tmp_path))
    assert names == [".holiday.ready", ".holiday.writing", "x-a.txt", "y-a.txt", "y-b.txt"]
    assert all((tmp_path / name / "a.jpg").exists() for name in names[:2])
