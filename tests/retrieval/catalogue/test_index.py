"""Catalogue indexes on disk."""

import os

import pyarrow
import pytest

from retrieval.catalogue import index
from trainer import files


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
