"""The page that compares two evaluations."""

from retrieval.evaluation.figures import Source
from retrieval.reports import comparison_page


def test_pictures_come_from_the_evaluated_model(tiny, tmp_path, monkeypatch):
    """From its own configuration, wherever the evaluation lies."""
    monkeypatch.chdir(tiny)
    monkeypatch.syspath_prepend(tiny)
    checkpoint = str(tiny / "experiments/exp-tiny/checkpoint/model-3")
    models = {Source(model="tiny", checkpoint=checkpoint)}
    found = comparison_page.images_of(models, {"1/p<12>"}, {"2/p<14>"})
    assert {name: image.shape for name, image in found.items()} == {
        "1/p<12>": (8, 8, 1), "2/p<14>": (8, 8, 1),
    }  # fmt: skip
    same = comparison_page.images_of(models, {"1/p<12>"}, set(), {})
    assert list(same) == ["1/p<12>"]
    models = {Source(model="tiny", checkpoint=str(tmp_path / "gone/model-3"))}
    assert comparison_page.images_of(models, {"1/p<12>"}, set()) == {}
