"""The files of an index: damage is named, with what to do."""

import pytest
from stores import items, write_store

from retrieval.catalogue import index, reading


def test_damaged_and_missing_files_are_named(tmp_path, points):
    folder = tmp_path / "i"
    index.build(write_store(tmp_path / "s", [items(points)]), folder, "IVF4,SQ8", on_disk=True)
    version, manifest = reading.current(folder)
    reading.check_files(folder, version, manifest, everything=True)
    for name in ("index.faiss", "lists.ivfdata", "items.arrow"):
        path = folder / "versions" / "000001" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{name}: is damaged .*; build it again"):
            reading.check_files(folder, version, manifest, everything=True)
        path.unlink()
        with pytest.raises(ValueError, match=rf"{name}: is missing from its index"):
            reading.check_files(folder, version, manifest, everything=False)
        path.write_bytes(content)
    made, table = reading.read(version, manifest)
    assert made.ntotal == len(table) == len(points)
    with pytest.raises(ValueError, match="kind IVF4,RaBitQ cannot return"):
        reading.reconstruct(made, "IVF4,RaBitQ", 0, points[:1])
