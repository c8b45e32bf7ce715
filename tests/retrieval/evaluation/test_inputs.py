"""Reading embeddings from files."""

import numpy as np
import pytest

from retrieval.evaluation import inputs
from retrieval.evaluation.figures import evaluate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b"]}, r"q.txt: 2 lines for 3 embeddings"),
        ({"labels": ["a", "", "b"]}, r"q.txt, line 2: is empty"),
        ({"points": np.array([[1, 0], [np.nan, 1], [1, 1.0]])}, "queries: row 1 is not finite"),
        ({"points": np.array([[1, 0], [0, 0], [1, 1.0]])}, "queries: row 1 is all zeros"),
        ({"points": np.ones((3, 2, 2))}, r"not \[rows, dimensions\]"),
        ({"points": np.ones((3, 0))}, r"must be \[rows, dimensions\], not \[3, 0\]"),
        ({"points": np.ones((3, 2), int)}, "holds int64, not floats"),
        ({"labels": ["a", "b", "c"]}, "no two queries are of one product"),
        ({"ids": ["x", "y", "x"]}, "id 'x' occurs twice"),
        ({"points": np.empty((0, 2)), "labels": [], "ids": []}, "is empty: there is nothing"),
    ],
)
def test_bad_input_is_named(write_set, tmp_path, change, message):
    good = {"points": np.eye(3)[:, :2] + 1, "labels": ["a", "a", "b"], "ids": ["1", "2", "3"]}
    given = good | change
    write_set(tmp_path, "q", given["points"], given["labels"], given["ids"])
    with pytest.raises(ValueError, match=message):
        evaluate(inputs.load(tmp_path / "q.npy", tmp_path / "q.txt", tmp_path / "q_ids.txt"))


def test_a_mark_before_the_first_line_is_no_part_of_it(write_set, tmp_path):
    write_set(tmp_path, "q", np.eye(4, dtype=np.float32) + 1, ["a", "a", "b", "b"])
    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "q.txt").read_bytes())
    assert inputs.load(tmp_path / "q.npy", tmp_path / "q.txt").products.tolist() == [*"aabb"]
