"""Arrays of floats: memory-mapped, and nothing else is believed."""

import numpy as np
import pytest

from retrieval.embeddings import arrays


def test_an_array_is_mapped(tmp_path, points):
    np.save(tmp_path / "a.npy", points)
    found = arrays.load_array(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, points)
    np.save(tmp_path / "b.npy", points.astype(">f8"))
    found = arrays.load_array(tmp_path / "b.npy")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, points)


def test_other_files_are_refused(tmp_path, points):
    np.save(tmp_path / "whole.npy", points)
    content = (tmp_path / "whole.npy").read_bytes()
    np.save(tmp_path / "ints.npy", points.astype(int))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(content[:-1])
    (tmp_path / "text.npy").write_bytes(b"text")
    for name, said in (
        ("ints", "holds int64, not floats"),
        ("objects", "holds object, not floats"),
        ("cut", "the file was cut off"),
        ("text", "is not a NumPy array"),
    ):
        with pytest.raises(ValueError, match=said):
            arrays.load_array(tmp_path / f"{name}.npy")
