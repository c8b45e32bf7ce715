"""The notebooks in examples/: they run, and what is committed is what running them gives."""

import pathlib
import re
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import notebooks  # noqa: E402

OF_A_MACHINE = re.compile(r"(?<![\w.~])/(?:home|root|tmp|work|Users|usr|var|opt|private)/\w")


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_outputs_are_those_committed(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    executed = notebooks.execute(path, tmp_path)
    assert path.stat().st_size < 300_000
    for cell, again in zip(committed.cells, executed.cells, strict=True):
        assert cell.source == again.source
        if cell.cell_type == "code":
            # The numbers may differ between processors, but not what is shown.
            assert list(map(kind, cell.outputs)) == list(map(kind, again.outputs)), cell.source
    assert sum(bool(cell.get("outputs")) for cell in committed.cells) >= 4
    assert not OF_A_MACHINE.findall(nbformat.writes(committed))


def test_training_shows_one_line_that_is_replaced():
    (path,) = (path for path in notebooks.NOTEBOOKS if path.stem == "train_and_search")
    outputs = nbformat.read(path, as_version=4).cells[1].outputs
    lines = [o.data["text/plain"] for o in outputs if o.output_type == "display_data"]
    (line,) = [line for line in lines if "images/s" in line]
    assert line.startswith("step 150/150 ████") and "\n" not in line
    assert not any("images/s" in o.get("text", "") for o in outputs)


def kind(output):
    return output.output_type, sorted(output.get("data", {}))
