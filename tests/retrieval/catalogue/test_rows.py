"""The rows of a store, whole and in ranges."""

import numpy as np
import pytest
from stores import items, write_store

from retrieval.catalogue import rows
from retrieval.embeddings import store


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 7), (5, 25), (10, 20), (29, 30)])
def test_a_range_of_rows_is_read_from_the_files_that_hold_it(tmp_path, points, start, stop):
    folder = write_store(tmp_path / "s", [items(points[i : i + 10], i) for i in (0, 10, 20)])
    if start >= 10:
        (folder / "00000.npy").unlink()  # is not needed
    made, table = rows.checked(folder, "dot", start, stop)
    assert table["id"].to_pylist() == items(points[:30]).ids[start:stop].tolist()
    wanted = np.arange(len(made))
    np.testing.assert_array_equal(made[wanted], points[:30][start:stop])
    np.testing.assert_array_equal(made[wanted[::3]], points[:30][start:stop][::3])
    assert made[wanted[:0]].shape == (0, 16)


def test_arrays_are_read_without_their_tables(tmp_path, points):
    folder = write_store(tmp_path / "s", [items(points[:10]), items(points[10:30], 10)])
    for path in folder.glob("*.parquet"):
        path.unlink()
    made = rows.Rows(store.arrays(folder), "cosine")
    assert len(made) == 30
    (block,) = made.blocks(np.arange(30), 30)
    np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, rtol=1e-6)


def test_rows_that_cannot_be_searched_are_refused(tmp_path, points):
    twice = items(points[:4])
    twice.ids[3] = twice.ids[0]
    with pytest.raises(ValueError, match="occurs twice"):
        rows.checked(write_store(tmp_path / "a", [twice]), "dot")
    with pytest.raises(ValueError, match="zero|no direction"):
        rows.checked(write_store(tmp_path / "b", [items(points[:4] * 0)]), "cosine")
