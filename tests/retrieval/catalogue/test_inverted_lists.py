"""Inverted lists on disk."""

import os
import shutil

import numpy as np
import pytest
from stores import NASTY, items, numbers, write_store

from retrieval.catalogue import index


def test_lists_on_disk_are_checked(tmp_path, points):
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match="has no inverted lists to keep on disk"):
        index.build(source, folder, "Flat", on_disk=True)
    # Blocks of 1024 rows are the least; the lists are those that memory would hold.
    index.build(source, folder, "IVF8,SQ8", on_disk=True, memory=1)
    index.build(source, tmp_path / "other", "IVF8,SQ8")
    for folder_ in (folder, tmp_path / "other"):
        loaded = index.Catalogue.open(folder_)
        loaded.manifest["tuned"]["effort"] = 8
        found = numbers(loaded, loaded.find(points[:20], k=7))
        if folder_ is folder:
            expected = found
    np.testing.assert_array_equal(found, expected)
    lists = folder / "versions/000001/lists.ivfdata"
    assert index.Catalogue.open(folder, everything=True).manifest["on_disk"]
    data = bytearray(lists.read_bytes())
    data[-9] ^= 1
    lists.write_bytes(data)
    with pytest.raises(ValueError, match=r"lists\.ivfdata: is damaged"):
        index.Catalogue.open(folder, everything=True)
    lists.write_bytes(data[:-9])  # a mapped file that is too short would end the process
    with pytest.raises(ValueError, match=r"lists\.ivfdata: is damaged"):
        index.Catalogue.open(folder)


def test_a_full_disk_ends_no_build_of_lists_on_disk(tmp_path, points, monkeypatch):
    """FAISS fills a mapped file: without room for it, a signal would end the program."""
    source = write_store(tmp_path / "s", [items(points)])
    folder = tmp_path / "index"
    index.build(source, folder, "IVF8,SQ8", on_disk=True)
    room = shutil.disk_usage(tmp_path)._replace(free=600 * (16 + 8) - 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: room)
        with pytest.raises(OSError, match=r"No space left on device for 14400 bytes.*lists\.ivf"):
            index.remove([f"i0001{NASTY}"], folder)
    assert os.listdir(folder / "versions") == ["000001"]
    assert index.Catalogue.open(folder, everything=True).manifest["count"] == 600
