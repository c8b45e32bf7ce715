"""One trial of a sweep, on either engine."""

import json
import sys

import optuna
import pytest
import toy

from trainer import engines, trials

# Stands in for the trainer: three full validation passes, then done.
TRAINER = """
import json, os, sys
keys = dict(a[2:].split("=", 1) for a in sys.argv[1:])
folder = os.path.join(keys["trainer.experiment_base_dir"], keys["trainer.experiment_name"])
os.makedirs(folder + "/checkpoint")
json.dump({"model.num_steps": 3}, open(folder + "/config.json", "w"))
with open(folder + "/metrics.jsonl", "w") as log:
    for step in (1, 2, 3):
        value = float(keys["toy.dropout"]) / step
        line = {"split": "vld", "step": step, "examples": 9, "error": value}
        log.write(json.dumps(line) + "\\n")
open(folder + "/checkpoint/model-3.index", "w")
print("trained", "OMP_NUM_THREADS" in os.environ)
"""


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_trial_reports_what_its_process_writes(config, tmp_path, monkeypatch, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    (tmp_path / "stand_in.py").write_text(TRAINER)
    monkeypatch.setattr(
        engines,
        "trainer_command",
        lambda *flags: [sys.executable, str(tmp_path / "stand_in.py"), *flags[1:]],
    )
    study = optuna.create_study(direction="minimize")
    space = {"toy.dropout": optuna.distributions.FloatDistribution(0.3, 0.3)}
    with engines.ENGINES[engine](1) as (seat,):
        trial = trials.Trial(study.ask(space), toy, config, {}, str(tmp_path), seat)
        while not trial.look(study, "error"):
            pass
    (told,) = study.trials
    assert told.state.name == "COMPLETE" and told.value == pytest.approx(0.1)
    assert json.loads(json.dumps(told.intermediate_values)).keys() == {"1", "2", "3"}
    assert (tmp_path / "trial-000.log").read_text() == "trained False\n"
