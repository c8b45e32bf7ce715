"""Sweeps: what is tried, what is stopped, and that a killed one goes on."""

import os
import pathlib
import re
import resource
import signal
import sys
import threading
import time

import optuna
import pytest
import toy

from trainer import files, meters, sweep, trials
from trainer.config import UserError

# Stands in for the trainer: learns as toy.dropout says, without TensorFlow.
TRAINER = """
import json, os, signal, sys, time
keys = dict(a[2:].split("=", 1) for a in sys.argv[1:])
rate, steps = float(keys["toy.dropout"]), 5
folder = os.path.join(keys["trainer.experiment_base_dir"], keys["trainer.experiment_name"])
os.makedirs(folder + "/checkpoint", exist_ok=True)
json.dump({"model.num_steps": steps}, open(folder + "/config.json", "w"))
if rate == 0.5:
    print("step 1\\nerror: The loss or a gradient is not finite in step 2"); sys.exit(1)
if rate == 0.6 and not os.path.exists(folder + "/once"):
    open(folder + "/once", "w"); sys.exit(0)  # stopped by somebody
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
log = open(folder + "/metrics.jsonl", "w")
for step in range(1, steps + 1):
    value = rate + 1 / step
    log.write(json.dumps({"split": "vld", "step": step, "examples": 9, "error": value}) + "\\n")
    log.flush()
    time.sleep(0.5 if rate > 0.8 else 0)
open(folder + f"/checkpoint/model-{steps}.index", "w")
"""


@pytest.fixture
def swept(config, tmp_path, monkeypatch):
    """Sweeps with the stand-in; returns (study, {trial number: state})."""
    script = tmp_path / "stand_in.py"
    script.write_text(TRAINER)

    def command(model, keys):
        return [sys.executable, str(script), *(f"--{k}={v}" for k, v in keys.items())]

    monkeypatch.setattr(trials, "_command", command)
    monkeypatch.setattr(sweep, "SECONDS", 0.02)

    def run(**options):
        study = sweep.run(toy, **{"metric": "error", **options})
        return study, [trial.state.name for trial in study.trials]

    return run


def test_a_grid_tries_every_combination_once(swept):
    study, states = swept(
        grid={"toy.dropout": [0.1, 0.2], "model.batch_size": [8, 16]}, jobs=2, pruner="none"
    )
    assert states == ["COMPLETE"] * 4
    tried = [(t.params["toy.dropout"], t.params["model.batch_size"]) for t in study.trials]
    assert tried == [("0.1", "8"), ("0.1", "16"), ("0.2", "8"), ("0.2", "16")]
    assert study.best_value == pytest.approx(0.1 + 1 / 5)
    assert study.best_trial.intermediate_values[1] == pytest.approx(0.1 + 1)


def test_a_search_stays_in_its_range_goes_on_and_is_reported(swept, tmp_path):
    options = {"grid": {"model.batch_size": [8, 16]}, "search": {"toy.dropout": "log:0.01:0.1"}}
    study, states = swept(**options, trials=3, pruner="none")
    assert states == ["COMPLETE"] * 3
    study, states = swept(**options, trials=5, pruner="none")
    assert states == ["COMPLETE"] * 5
    assert [t.params["model.batch_size"] for t in study.trials] == ["8", "16", "8", "16", "8"]
    rates = [t.params["toy.dropout"] for t in study.trials]
    assert len(set(rates)) == 5 and all(0.01 <= rate <= 0.1 for rate in rates)

    folder = tmp_path / "experiments" / "toy-sweep"
    assert (folder / "sweep.png").read_bytes()[1:4] == b"PNG"
    page = (folder / "sweep.html").read_text()
    assert page.count("<td>complete</td>") == 5 and "data:image/png;base64," in page
    assert "http" not in page
    first = page.index(f"<td>{study.best_trial.number}</td><td>complete</td>")
    assert first == page.index("<td>")  # the best trial is the first row

    with pytest.raises(
        UserError, match=r"was started with other settings \(model.weight_decay: None -> 0.5\)"
    ):
        swept(**options, trials=5, pruner="none", keys={"model.weight_decay": 0.5})


def test_hopeless_trials_are_pruned_and_failed_ones_do_not_stop_the_others(swept):
    study, states = swept(grid={"toy.dropout": [0.5, 0.1, 0.2, 0.3, 0.4, 0.9]})
    assert states == ["FAIL", *["COMPLETE"] * 4, "PRUNED"]
    assert "not finite" in study.trials[0].user_attrs["error"]
    assert len(study.trials[5].intermediate_values) < 5


def test_a_trial_that_somebody_stopped_is_continued_by_the_next_start(swept):
    study, states = swept(grid={"toy.dropout": [0.6, 0.1]})
    assert states == ["RUNNING", "COMPLETE"]
    study, states = swept(grid={"toy.dropout": [0.6, 0.1]})
    assert states == ["COMPLETE", "COMPLETE"] and study.trials[0].params["toy.dropout"] == "0.6"


def test_a_signal_stops_the_trials_and_the_next_start_continues_them(swept, tmp_path, capsys):
    logs = [
        tmp_path / "experiments" / "toy-sweep" / f"trial-00{n}" / "metrics.jsonl" for n in (0, 1)
    ]

    def stop():
        while not all(log.exists() and log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    study, states = swept(grid={"toy.dropout": [0.9, 0.95]}, jobs=2)
    assert states == ["RUNNING"] * 2
    assert "stopped (SIGTERM): the same command resumes" in capsys.readouterr().out
    study, states = swept(grid={"toy.dropout": [0.9, 0.95]}, jobs=2)
    assert states == ["COMPLETE"] * 2


def test_nothing_goes_on_where_no_trial_can_train(swept, config, monkeypatch):
    monkeypatch.setattr(trials, "_command", lambda model, keys: [sys.executable, "-c", "1 / 0"])
    with pytest.raises(UserError, match=r"No trial could train.*trial-000.log.*ZeroDivisionError"):
        swept(grid={"toy.dropout": [0.1, 0.2]})


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Give --grid"),
        ({"grid": {"model.batchsize": [1]}}, "Did you mean 'model.batch_size'"),
        ({"grid": {"model.batch_size": [1.5]}}, "'model.batch_size' takes int"),
        ({"grid": {"model.batch_size": [8, 8]}}, "model.batch_size needs different values"),
        ({"search": {"toy.dropout": "0:1"}}, "Give --trials"),
        ({"search": {"toy.dropout": "1:0"}, "trials": 1}, "toy.dropout=1:0 is not a range"),
        ({"search": {"toy.dropout": "log:0:1"}, "trials": 1}, "toy.dropout=log:0:1 is not a range"),
        ({"search": {"toy.dropout": "0:x"}, "trials": 1}, "toy.dropout=0:x is not a range"),
        ({"search": {"toy.norm": "none,bath"}, "trials": 1}, "'toy.norm'.*mean 'batch'"),
        (
            {"grid": {"toy.dropout": [0.1]}, "keys": {"toy.dropout": 0.2}},
            "'toy.dropout' is given twice",
        ),
        ({"grid": {"trainer.experiment_name": ["a"]}}, "experiment_name' is set by the sweep"),
    ],
)
def test_mistakes_name_the_key(swept, options, message):
    with pytest.raises(UserError, match=message):
        swept(**options)


def test_texts_are_read_in_the_type_of_their_key(config):
    grid = sweep.parse_grid(
        config,
        [
            "model.optimizer.adam.beta1=.9,.95",
            "model.lr_schedule.step.boundaries=10,20;30",
            "model.clip_gradients=true,false",
            "trainer.mixed_precision=,bfloat16",
        ],
    )
    assert list(grid.values()) == [[0.9, 0.95], [[10, 20], [30]], [True, False], ["", "bfloat16"]]
    kinds = optuna.distributions
    for name, text, expected in (
        ("toy.dropout", "0:.5", kinds.FloatDistribution(0.0, 0.5)),
        ("toy.dropout", "log:1e-3:.5", kinds.FloatDistribution(1e-3, 0.5, log=True)),
        ("model.batch_size", "8:64:8", kinds.IntDistribution(8, 64, step=8)),
        ("model.optimizer.method", "sgd,adam", kinds.CategoricalDistribution(["sgd", "adam"])),
    ):
        assert sweep.parse_search(config, name, text) == expected
    with pytest.raises(UserError, match=r"--grid=toy.dropout: write key=value,value"):
        sweep.parse_grid(config, ["toy.dropout"])
    with pytest.raises(UserError, match=r"'toy.dropout' is given twice"):
        sweep.parse_grid(config, ["toy.dropout=1", "toy.dropout=2"])
    with pytest.raises(UserError, match=r"model.batch_size=1,x: takes int"):
        sweep.parse_grid(config, ["model.batch_size=1,x"])


def test_a_killed_sweep_goes_on_with_its_half_trained_trial(program, tmp_path):
    arguments = ["trainer.sweep", "--model=toy", "--grid=model.optimizer.adam.beta1=.9"]
    arguments += ["--metric=mean_error", "--toy.seconds=0.05", "--model.num_steps=60"]
    arguments += ["--trainer.evaluation_interval=20", "--trainer.checkpoint_save_interval=10"]
    folder = tmp_path / "experiments" / "toy-sweep"

    def at_30():
        lines = meters.read_metrics(folder / "trial-000")
        return bool(lines) and lines[-1]["step"] >= 30

    code, out, err = program.interrupt(at_30, *arguments, by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, out, err = program(*arguments)  # waits for the trainer that the killed sweep has left
    assert code == 0 and "trial-000: done, mean_error" in out, err
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/sweep.db")
    (trial,) = study.trials
    lines = meters.read_metrics(folder / "trial-000")
    full = {line["step"]: line["mean_error"] for line in lines if "examples" in line}
    assert trial.intermediate_values == full and set(full) == {0, 20, 40, 60}
    assert trial.value == min(full.values())


def test_the_documented_lines_search(config, tmp_path, monkeypatch):
    """Runs the guide's own code, on the toy in place of a model that takes a minute."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "sweeping.md"
    (code,) = re.findall(r"```python\n(import optuna\n.*?)```", page.read_text(), re.DOTALL)
    for old, new in (
        ("from models import simple", "import toy as simple"),
        ("model.margin", "toy.dropout"),
        ("0.05, 1.0", "0.05, 0.5"),  # the toy diverges where almost all units are dropped
        ("n_trials=20", "n_trials=2"),
    ):
        assert old in code
        code = code.replace(old, new)
    config.update({"trainer.best_metric": "mean_error", "trainer.evaluation_interval": 10})
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    values = [trial.value for trial in names["study"].trials]
    assert len(set(values)) == 2 and all(value > 0 for value in values)
    assert sorted(os.listdir("experiments/margins")) == ["trial-0", "trial-1"]


@pytest.mark.parametrize("start", [b"", b"SQLite format 3\0"], ids=["full_disk", "damaged"])
def test_a_damaged_study_and_a_full_disk_are_one_line(config, tmp_path, start):
    folder = tmp_path / "sweep"
    files.claim(folder, "sweep")
    (folder / "sweep.db").write_bytes(start.ljust(5000 * bool(start), b"\1"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    message = r"sweep\.db: cannot be read or written \(\w+ .*\)\. Free"
    try:
        with pytest.raises(UserError, match=message), sweep._opened(str(folder)):
            sweep._open_study(optuna, str(folder), {}, 0, "none", True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
