"""The page that compares two evaluations."""

from retrieval.evaluation.figures import Source
from retrieval.reports import comparison_page


def test_pictures_come_from_the_evaluated_model(tiny, tmp_path, monkeypatch):
    """From its own configuration, wherever the evaluation lies."""
    monkeypatch.chdir(tiny)
    monkeypatch.syspath_prepend(tiny)
    checkpoint = str(tiny / "experiments/exp-tiny/checkpoint/model-3")
    models = {Source(model="tiny", checkpoint=checkpoint)}
    found = comparison_page.images_of(models, {"1/p<12>"}, {"2/p<14>"}, None, True)
    assert {name: image.shape for name, image in found.items()} == {
        "1/p<12>": (8, 8, 1), "2/p<14>": (8, 8, 1),
    }  # fmt: skip
    same = comparison_page.images_of(models, {"1/p<12>"}, set(), {}, True)
    assert list(same) == ["1/p<12>"]
    models = {Source(model="tiny", checkpoint=str(tmp_path / "gone/model-3"))}
    assert comparison_page.images_of(models, {"1/p<12>"}, set(), None, True) == {}


def test_a_module_that_an_evaluation_names_is_not_imported_unasked(tmp_path, monkeypatch, capsys):
    (tmp_path / "foreign.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    models = {Source(model="foreign", checkpoint=None)}
    assert comparison_page.images_of(models, {"q"}, set()) == {}
    assert "names this module; --allow_code imports it" in capsys.readouterr().err
