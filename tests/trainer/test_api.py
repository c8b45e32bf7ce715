"""Training from Python: `trainer.train`, its `Run`, and loggers."""

import json
import pathlib
import sys

import pytest
import toy

import trainer
from trainer.config import UserError

LOGGERS = pathlib.Path(__file__).parents[2] / "examples" / "loggers"


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(**settings):
        few = {"model.num_steps": 4, "trainer.evaluation_interval": 4, "toy.dropout": 0.0}
        return trainer.train(toy, **few | settings)

    return train


def test_a_run_has_its_folder_step_and_figures_and_leaves_the_configuration_alone(train, tmp_path):
    before = toy.config.to_dict()
    run = train(**{"trainer.experiment_name": "first"})
    assert run.step == 4 and run.folder == str(tmp_path / "experiments" / "first")
    assert [line["step"] for line in run.metrics if line["split"] == "trn"] == [1, 2, 3, 4]
    assert "mean_error" in run.metrics[-1]
    saved = json.loads((tmp_path / "experiments" / "first" / "config.json").read_text())
    assert saved["model.num_steps"] == 4
    assert toy.config.to_dict() == before and toy.config.given == set()


def test_a_run_resumes_unless_it_is_fresh(train):
    train()
    assert train(**{"model.num_steps": 6}).step == 6
    again = train(fresh=True)
    assert again.step == 4 and len([x for x in again.metrics if x["split"] == "trn"]) == 4


def test_a_misspelled_key_is_named_before_anything_is_trained(train, tmp_path):
    with pytest.raises(UserError, match=r"model\.num_step.*Did you mean.*model\.num_steps"):
        train(**{"model.num_step": 1})
    assert not (tmp_path / "experiments").exists()


def test_a_logger_gets_every_line(train):
    lines = []
    run = train(**{"trainer.log": lambda *line: lines.append(line)})
    assert run.metrics == [{"split": split, "step": step} | v for split, step, v in lines]


def test_a_logger_that_fails_is_a_warning(train, capsys):
    def broken(split, step, values):
        raise ConnectionError("no server")

    assert train(**{"trainer.log": broken}).step == 4
    warnings = [x for x in capsys.readouterr().err.splitlines() if "trainer.log" in x]
    assert warnings == ["warning: trainer.log failed at step 0 (ConnectionError: no server)"]


@pytest.fixture
def loggers(monkeypatch):
    monkeypatch.syspath_prepend(LOGGERS)
    yield
    for name in ("mlflow_log", "wandb_log"):
        sys.modules.pop(name, None)


def test_the_example_for_mlflow(train, loggers, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = train(**{"trainer.log": "mlflow_log:log"})
    active = mlflow.active_run().info.run_id
    mlflow.end_run()
    history = mlflow.MlflowClient().get_metric_history(active, "trn/loss")
    expected = [(x["step"], x["loss"]) for x in run.metrics if x["split"] == "trn"]
    assert [(point.step, point.value) for point in history] == expected


def test_the_example_for_weights_and_biases(train, loggers, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(**{"trainer.log": "wandb_log:log"})
    wandb.run.log({}, step=5)  # the values of a step are taken when the next one begins
    assert wandb.run.summary["trn/loss"] == run.metrics[-2]["loss"]
    wandb.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
