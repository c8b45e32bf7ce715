"""An index as files: every item that is not removed, with its vector."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from stores import items, run_program, write_store

from retrieval import eval as evaluator
from retrieval import index as program
from retrieval.catalogue import index
from retrieval.evaluation import inputs


@pytest.fixture
def folder(tmp_path, points):
    rows = items(points)
    plain = np.array([name.replace("\n", " ") for name in rows.ids.tolist()])
    rows.ids[:] = plain
    index.build(write_store(tmp_path / "s", [rows]), tmp_path / "i", "Flat", similarity="dot")
    index.remove(plain[5:7].tolist(), tmp_path / "i")
    return tmp_path / "i"


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_tables_hold_items_and_vectors(folder, points, tmp_path, capsys, kind):
    line = ["export", f"--index={folder}", f"--to={kind}", f"--output={tmp_path}/out"]
    for _ in range(2):  # the second replaces the first
        assert run_program(program, *line) == 0
        assert capsys.readouterr().out == f"{tmp_path}/out: 598 items\n"
    if kind == "lance":
        import lance

        table = lance.dataset(str(tmp_path / "out" / "items.lance")).to_table()
        assert {p.name for p in (tmp_path / "out").iterdir()} == {".prototrain", "items.lance"}
    else:
        table = parquet.read_table(tmp_path / "out")
    kept = np.delete(np.arange(600), [5, 6])
    table = table.sort_by("id")
    vectors = np.array(pyarrow.concat_arrays(table["vector"].chunks).flatten()).reshape(-1, 16)
    np.testing.assert_array_equal(vectors, points[kept])
    assert table["product"].to_pylist() == items(points).products[kept].tolist()
    assert table.column_names == ["id", "product", "category", "path", "vector"]


def test_arrays_are_what_eval_takes(folder, points, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["export", f"--index={folder}", "--to=npy", f"--output={out}"]
    assert run_program(program, *line) == 0
    made = inputs.load(*(f"{out}/{name}" for name in ("embeddings.npy", "products.txt", "ids.txt")))
    kept = inputs.load(str(folder))
    np.testing.assert_array_equal(made.embeddings, kept.embeddings)
    for field in ("ids", "products"):
        np.testing.assert_array_equal(getattr(made, field), getattr(kept, field))
    line = [f"--queries={out}/embeddings.npy", f"--query_labels={out}/products.txt"]
    assert run_program(evaluator, *line, f"--output={tmp_path}/o") == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--to=parquet"], "--to=parquet: needs --output"),
        (["--to=parquets", "--output=x"], "--to=parquets: takes milvus:URI, parquet, npy, lance"),
        (["--to=npy", "--output={folder}"], "is the folder of an index and is not the folder of"),
        (["--to=npy", "--output={folder}/../nasty"], "hold line ends"),
    ],
)
def test_what_cannot_be_exported_is_one_line(folder, points, tmp_path, capsys, given, said):
    if "nasty" in given[-1]:
        index.build(write_store(tmp_path / "n", [items(points[:9])]), tmp_path / "j", "Flat")
        folder = tmp_path / "j"
    given = [text.format(folder=folder) for text in given]
    assert run_program(program, "export", f"--index={folder}", *given) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_rollback_still_takes_a_number(folder, capsys):
    assert run_program(program, "rollback", f"--index={folder}", "--to=x") == 1
    assert "--to=x: takes the number of a version" in capsys.readouterr().err
    assert run_program(program, "rollback", f"--index={folder}", "--to=1") == 0
