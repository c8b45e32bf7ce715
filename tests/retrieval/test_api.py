"""Evaluation from Python: `retrieval.evaluate` and its `Report`."""

import webbrowser

import numpy as np
import pytest

import retrieval
from retrieval import metrics
from trainer.api import Run

CHECKPOINT = "experiments/exp-tiny"


def vectors(rows, seed=0):
    """(embeddings [N, 4], products [N]) that a cosine search finds in part."""
    products = np.arange(rows) % 6
    noise = np.random.default_rng(seed).normal(0, 0.7, (rows, 4))
    return (np.eye(6)[products][:, :4] + noise).astype(np.float32), products


def test_arrays_are_evaluated_as_metrics_does():
    queries, catalogue = vectors(30), vectors(18, 1)
    report = retrieval.evaluate(queries, catalogue, ks=(1, 5))
    expected = metrics.recall_at_k(*queries, *catalogue, ks=(1, 5))
    assert report.figures.recall == {k: pytest.approx(expected[k]) for k in (1, 5)}
    assert report.path is None
    with pytest.raises(ValueError, match=r"output=FOLDER\) writes one"):
        report.show()


def test_one_set_is_searched_among_the_others():
    report = retrieval.evaluate(vectors(30))
    assert report.figures.num_self_excluded == 30


def test_a_report_is_written_shown_and_read_as_a_table(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    report = retrieval.evaluate(vectors(30), vectors(18, 1), output=tmp_path / "out")
    report.show()
    assert opened == [f"file://{tmp_path}/out/embeddings-report.html"]
    assert (tmp_path / "out" / "embeddings-report.html").stat().st_size > 1000
    monkeypatch.chdir(tmp_path)
    shown = report._repr_html_()
    assert repr(report) == "Report(path='out/embeddings-report.html')"
    assert "<p>Report: out/embeddings-report.html</p>" in shown
    assert report.figures.verdict.sentence in shown and "recall@1" in shown
    rate = report.rows()["embeddings"]["recall@1"]
    assert f"<td>{rate:.3f}</td>" in shown
    pandas = pytest.importorskip("pandas")
    assert isinstance(report.to_frame(), pandas.DataFrame)
    assert report.to_frame().loc["embeddings", "recall@1"] == rate


@pytest.mark.parametrize(
    "queries, catalogue, message",
    [
        ((np.zeros((3, 4), np.float32), np.arange(2)), None, r"queries: labels have shape \[2\]"),
        ((np.zeros(3, np.float32), np.arange(3)), None, r"queries: embeddings are float32 \[3\]"),
        ((np.zeros((3, 4), int), np.arange(3)), None, "queries: embeddings are int64"),
        (np.zeros((3, 4), np.float32), None, r"queries: give \(embeddings, labels\)"),
        (vectors(3), (np.zeros((3, 5), np.float32), np.arange(3)), "4 dimensions, the catalogue 5"),
        ((*vectors(3), np.arange(4)), None, r"queries: ids have shape \[4\], not \[3\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(queries, catalogue, message):
    with pytest.raises(ValueError, match=message):
        retrieval.evaluate(queries, catalogue)


def test_a_run_is_evaluated_with_its_own_configuration(tiny_model):
    before = tiny_model.config.to_dict()
    run = Run(tiny_model, CHECKPOINT, 3)
    report = run.evaluate(ks=(1,))
    assert report.figures.source.step == 3 and report.path.endswith("model-3-report.html")
    assert "raw pixels" in report.rows()
    assert tiny_model.config.to_dict() == before
    with pytest.raises(ValueError, match="own catalogue"):
        retrieval.evaluate(run, vectors(3))
    with pytest.raises(ValueError, match="contains no checkpoint"):
        retrieval.evaluate(Run(tiny_model, "nowhere", 3))
