"""The files of an evaluation."""

import pytest

from retrieval.evaluation.figures import evaluate
from retrieval.reports import outputs, page


def test_figures_never_stand_beside_another_evaluations_lists(
    circle, stored, tmp_path, monkeypatch
):
    queries, catalogue = circle
    result = evaluate(queries, catalogue)
    given = (str(tmp_path / "e"), stored(result), queries, catalogue)
    outputs.write_stored(*given)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "e-eval.json" in old

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write", full)
    with pytest.raises(OSError, match="No space left"):
        outputs.write_stored(*given)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
