"""Progress, metrics.jsonl, the best pass, a collapse."""

import json
import math

import pytest

from trainer import meters
from trainer.config import Config, UserError


def test_a_collapse_is_warned_of_once():
    collapse = meters.Collapse()
    spreads = [0.5, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4]
    said = [collapse.check({"embedding_spread": s, "loss": 0.2}) for s in spreads]
    assert [bool(text) for text in said] == [False, False, False, True, False, False]
    assert "loss 0.2" in said[3] and "collapsed" in said[3]
    assert collapse.check({"loss": 1.0}) is None


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
