"""What a kill or a full disk leaves of an index."""

import errno
import os

import faiss
import pytest
from stores import NASTY, items, write_store

from retrieval.catalogue import index, versions
from trainer import files


def test_what_a_killed_build_left_is_no_version(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points[:9])])
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")
    index.build(source, folder, "Flat")
    (folder / "versions/000003").mkdir()
    (folder / "versions/000003/index.faiss").write_bytes(b"half")
    assert index.Catalogue.open(folder).manifest["version"] == 2
    index.build(source, folder, "Flat")
    assert sorted(os.listdir(folder / "versions")) == ["000001", "000002", "000003"]
    assert index.Catalogue.open(folder).manifest["version"] == 3


def test_a_full_disk_leaves_the_old_version(tmp_path, points, monkeypatch):
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            index.remove([f"i0001{NASTY}"], folder)
    assert os.listdir(folder / "versions") == ["000001"]
    assert index.Catalogue.open(folder).manifest["count"] == 600


def test_folders_of_others_are_never_touched(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points[:9])])
    mine = tmp_path / "mine/versions/holiday"
    mine.mkdir(parents=True)
    (mine / "a.jpg").write_text("mine")
    with pytest.raises(ValueError, match="mine: holds 'versions' and is not the folder of an ind"):
        index.build(source, tmp_path / "mine", "Flat")
    assert (mine / "a.jpg").read_text() == "mine"
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")
    (folder / "versions/holiday").mkdir()
    (folder / "versions/holiday/a.jpg").write_text("mine")
    (folder / "versions/000001/notes.txt").write_text("mine")
    for _ in range(4):
        index.build(source, folder, "Flat")
    assert (folder / "versions/holiday/a.jpg").read_text() == "mine"
    assert (folder / "versions/000001/notes.txt").read_text() == "mine"
    assert not (folder / "versions/000001/index.faiss").exists()
    assert versions.numbers(folder) == [3, 4, 5]


def test_rollback_goes_back_and_forth(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points[:9])])
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")
    index.remove([f"i0001{NASTY}"], folder)
    assert [(m["count"], now) for m, now in index.history(folder)] == [(9, False), (8, True)]
    assert index.rollback(folder, 1)["count"] == 9
    with index.Catalogue.open(folder) as loaded:
        assert loaded.version == 1 and loaded.manifest["count"] == 9
    with pytest.raises(ValueError, match=r"--to=7: .* has the versions 1, 2"):
        index.rollback(folder, 7)
    (folder / "versions/000002/items.arrow").write_bytes(b"")
    with pytest.raises(ValueError, match=r"items\.arrow: is damaged"):
        index.rollback(folder, 2)
    assert index.manifest_of(folder)["version"] == 1
    index.remove([f"i0002{NASTY}"], folder)
    assert index.manifest_of(folder)["version"] == 3


@pytest.mark.parametrize("key, value", [("removed", 0), ("count", 10), ("similarity", "dot")])
def test_a_changed_manifest_is_damage(tmp_path, points, key, value):
    source = write_store(tmp_path / "s", [items(points[:9])])
    folder = tmp_path / "index"
    index.build(source, folder, "Flat")
    index.remove([f"i0001{NASTY}", f"i0002{NASTY}"], folder)
    path = folder / "versions/000002/manifest.json"
    manifest = files.read_json(path)
    assert manifest[key] != value
    files.write_json(path, manifest | {key: value})
    with pytest.raises(ValueError, match=r"manifest\.json: is damaged"):
        index.Catalogue.open(folder)
    del manifest["checksum"]
    files.write_json(path, manifest)
    with pytest.raises(ValueError, match=r"manifest\.json: has no checksum"):
        index.Catalogue.open(folder)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("what", ["build", "add", "remove"])
def test_a_crash_between_any_two_steps_leaves_the_old_or_the_new(
    tmp_path, points, monkeypatch, what, on_disk
):
    """At each call that changes the disk in turn, as a kill would end it there."""
    source = write_store(tmp_path / "s", [items(points)])
    more = write_store(tmp_path / "more", [items(points[:5], 600)])
    steps = {
        "build": lambda f: index.build(source, f, "IVF4,SQ8", on_disk=on_disk),
        "add": lambda f: index.add(more, f),
        "remove": lambda f: index.remove([f"i0001{NASTY}"], f),
    }

    class Killed(BaseException):
        pass

    def counted(real, count, at):
        def call(*arguments, **options):
            count.append(real)
            if len(count) > at:  # nothing after a kill is run, not even what cleans up
                raise Killed
            return real(*arguments, **options)

        return call

    at = 0
    while True:
        folder = tmp_path / f"index{at}"
        index.build(source, folder, "IVF4,SQ8", on_disk=on_disk)
        count = []
        with monkeypatch.context() as patch:
            for place, name in (
                (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "makedirs"),
                (faiss, "write_index"),
            ):  # fmt: skip
                patch.setattr(place, name, counted(getattr(place, name), count, at))
            try:
                steps[what](folder)
                done = True
            except Killed:
                done = False
        with index.Catalogue.open(folder, everything=True) as loaded:
            assert loaded.version in (1, 2) and loaded.find(points[:3], 2).rows.shape == (3, 2)
        index.build(source, folder, "IVF4,SQ8", on_disk=on_disk)  # heals
        files_left = {p.name for p in (folder / "versions").rglob("*") if p.is_file()}
        known = {"index.faiss", "items.arrow", "manifest.json", "lists.ivfdata"}
        assert files_left <= known, files_left - known
        assert not list(folder.glob(".*.tmp"))
        if done:
            break
        at += 1
    assert at > 8
