"""Progress, metrics.jsonl, the best pass, a collapse."""

import json
import math

import pytest

from trainer import meters
from trainer.config import Config, UserError


def test_a_collapse_is_warned_of_once():
    watch = meters.Watch()
    spreads = [0.5, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4]
    said = [watch.check(i, {"embedding_spread": s, "loss": 0.2}) for i, s in enumerate(spreads)]
    assert [bool(text) for text in said] == [False, False, False, True, False, False]
    assert "loss 0.2" in said[3] and "collapsed" in said[3]
    assert watch.check(9, {"loss": 1.0}) is None


def test_a_loss_of_0_is_explained_once():
    watch = meters.Watch()
    said = [watch.check(10 * i, {"loss": loss}) for i, loss in enumerate([0.0, 0.1, 0, 0, 0, 0])]
    assert [bool(text) for text in said] == [False, False, False, False, True, False]
    assert "satisfies its margin" in said[4] and "step 40" in said[4] and "miner" in said[4]


def test_the_forecast_counts_steps_and_validation():
    forecast = meters.Forecast(100, 1108, evaluate_every=100)
    forecast.evaluated(50.0)  # half a second per step
    said = [forecast.step(100 + i, 60.0 if i <= 3 else 0.5) for i in range(1, 12)]
    assert [i for i, text in enumerate(said, 1) if text] == [8]  # the first three are not timed
    assert said[7] == (
        "about 17 minutes on this machine (1 s per step); --model.num_steps=708 for 10 minutes"
    )
    short = meters.Forecast(0, 20, evaluate_every=0)
    assert [short.step(i, 1.0) for i in range(1, 9)][-1] == (
        "about 12 seconds on this machine (1 s per step)"
    )


def test_equal_figures_are_decided_by_the_loss(tmp_path):
    config = Config({"trainer.best_metric": "recall@1"})
    best = meters.Best(tmp_path, config)
    passes = [(0, 0.9, 1.0), (1, 0.9, 0.8), (2, 0.9, 0.8), (3, 0.8, 0.1), (4, 0.95, 2.0)]
    better = [best.improved(step, {"recall@1": r, "loss": loss}) for step, r, loss in passes]
    assert better == [True, True, False, False, True] and best.step == 4


@pytest.mark.parametrize(
    "metric, name, lower",
    [
        ("loss", "loss", True),
        ("mean_rank", "mean_rank", True),
        ("recall@1", "recall@1", False),
        ("max:loss", "loss", False),
        ("min:recall@1", "recall@1", True),
        ("top:5", "top:5", False),
    ],
)
def test_the_direction_of_a_figure_can_be_stated(metric, name, lower):
    assert meters.direction(metric) == (name, lower)


def best(tmp_path, metric, values, patience=0):
    config = Config({"trainer.best_metric": metric})
    config["trainer.early_stopping_patience"] = patience
    found = meters.Best(tmp_path, config)
    improved = [found.improved(i, {"error": v, "recall": v}) for i, v in enumerate(values)]
    return found, improved


NAN = math.nan


@pytest.mark.parametrize(
    "metric, values, expected",
    [
        ("error", [3, 1, 2], [True, True, False]),
        ("max:error", [1, 3, 2], [True, True, False]),
        ("recall", [NAN, 0.1, NAN, 0.2], [False, True, False, True]),
        ("min:recall", [NAN, 0.2, 0.1, NAN], [False, True, True, False]),
        ("error", [math.inf, 1.0], [True, True]),
    ],
)
def test_the_best_pass(tmp_path, metric, values, expected):
    found, improved = best(tmp_path, metric, values)
    assert improved == expected and found.step == max(i for i, e in enumerate(expected) if e)


def test_the_best_pass_is_known_after_a_resume(tmp_path):
    lines = [{"split": "vld", "step": s, "examples": 9, "error": e} for s, e in enumerate([5, NAN])]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, improved = best(tmp_path, "error", [6, 4])
    assert improved == [False, True] and found.value == 4


def test_passes_that_are_not_better_stop_early(tmp_path):
    assert not best(tmp_path, "error", [1, NAN], patience=2)[0].stalled()
    assert best(tmp_path, "error", [1, NAN, 2], patience=2)[0].stalled()


@pytest.mark.parametrize("end", ['{"split": "t', "\xff\xfe", "5", '{"step": "x"}', "[]"])
def test_metrics_end_at_the_first_damaged_line(tmp_path, end):
    good = json.dumps({"split": "trn", "step": 1})
    (tmp_path / "metrics.jsonl").write_bytes(f"{good}\n{end}\n{good}\n".encode("latin-1"))
    assert meters.read_metrics(tmp_path) == [{"split": "trn", "step": 1}]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    log = meters.MetricsLog(tmp_path, 0)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"Cannot write .*metrics\.jsonl: No space left"):
        log.write("trn", 1, loss=1.0)
    log.close()


def test_a_notebook_gets_one_line_that_is_written_anew(monkeypatch, capsys):
    written = []

    class Line:
        write = staticmethod(written.append)

    monkeypatch.setattr(meters.notebook, "running", lambda: True)
    monkeypatch.setattr(meters.notebook, "Line", Line)
    progress = meters.Progress(0, 40, 8)
    progress.report(10, 0.5, 0.01)
    progress.say("a line of its own")
    progress.report(40, 0.25, 0.01)
    progress.close()
    assert capsys.readouterr().out == "a line of its own\n"
    assert [text.partition(" lr")[0] for text in written] == [
        "step 10/40 █████░░░░░░░░░░░░░░░ loss 0.5000 ",
        "step 40/40 ████████████████████ loss 0.2500 ",
    ]
