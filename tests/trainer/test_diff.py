"""How two experiments differ."""

import json

import pytest

from trainer import diff
from trainer.config import UserError


def test_equal_runs_do_not_differ(train):
    found = diff.compare(train("a"), train("b"))
    assert list(found) == ["config", "code", "data", "packages", "start", "metrics"]
    assert not any(found.values())


def test_the_first_step_that_differs_is_found(train):
    # The rate changes after step 7's update, so that step 9 is the first to lose another loss.
    keys = {"model.lr_schedule.method": "step", "model.lr_schedule.step.values": [0.02, 0.02]}
    a = train("a", keys={**keys, "model.lr_schedule.step.boundaries": [7]})
    keys["model.lr_schedule.step.values"] = [0.02, 0.04]
    b = train("b", keys={**keys, "model.num_steps": 15})
    found = diff.compare(a, b)
    assert found["config"] == [
        "model.lr_schedule.step.values: [0.02, 0.02] -> [0.02, 0.04]",
        "model.num_steps: 20 -> 15",
    ]
    assert found["metrics"][0] == "first differ at step 8 (trn; equal up to step 7):"
    assert found["metrics"][1].split() == ["lr:", "0.0199999996", "->", "0.0399999991"]
    assert found["metrics"][-1] == "last step: 20 -> 15"


def made(folder, metrics=(), config=(), **start):
    """An experiment's files, without the training."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(config)))
    (folder / "provenance.json").write_text(json.dumps([{}, start]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def test_code_data_and_packages_are_compared(tmp_path):
    a = made(
        tmp_path / "a",
        config={"dataset.manifest": "one.csv"},
        git_commit="abc",
        git_diff="code-1.diff",
        packages={"numpy": "1", "tensorflow": "2"},
        command=["python", "-m", "trainer.main", "--trainer.experiment_name=a", "--fresh"],
        data_fingerprint="f00",
    )
    b = made(
        tmp_path / "b",
        config={"dataset.manifest": "one.csv"},
        git_commit="def",
        git_diff="code-1.diff",
        packages={"numpy": "1", "tensorflow": "3"},
        command=["python3", "-m", "trainer.main", "--trainer.experiment_name=b"],
        data_fingerprint="ba5",
    )
    (a / "code-1.diff").write_text("-x\n+y\n")
    (b / "code-1.diff").write_text("-x\n+z\n")
    found = diff.compare(a, b)
    assert found["code"][0] == "commit: abc -> def"
    assert {"-+y", "++z"} < set(found["code"]) and "-x" not in found["code"]
    assert found["data"] == ["fingerprint: f00 -> ba5"]
    assert found["start"] == ["only the first command has --fresh"]
    assert found["packages"] == ["tensorflow: '2' -> '3'"]


def test_data_without_a_fingerprint_are_compared_by_their_keys(tmp_path):
    a = made(tmp_path / "a", config={"dataset.manifest": "one.csv"}, data_fingerprint="f00")
    b = made(tmp_path / "b", config={"dataset.manifest": "two.csv"})
    assert diff.compare(a, b)["data"] == ["dataset.manifest: 'one.csv' -> 'two.csv'"]


def test_metrics_at_other_intervals_are_compared_where_both_have_them(tmp_path):
    def lines(*steps, **last):
        found = [{"split": "trn", "step": step, "loss": 1 / step} for step in steps]
        found[-1] |= last
        return found

    nan = float("nan")
    a = made(tmp_path / "a", metrics=lines(2, 4, 6, 8, loss=nan))
    b = made(tmp_path / "b", metrics=lines(4, 8, loss=nan))
    assert diff.compare(a, b)["metrics"] == []
    c = made(tmp_path / "c", metrics=lines(3, 5))
    assert diff.compare(a, c)["metrics"] == ["the two metrics.jsonl have no step in common"]
    d = made(tmp_path / "d", metrics=lines(4, 6, loss=2.0))
    assert diff.compare(a, d)["metrics"] == [
        "first differ at step 6 (trn; equal up to step 4):",
        "  loss: 0.166666667 -> 2",
        "last step: 8 -> 6",
    ]


def test_what_is_no_experiment_is_named(tmp_path, program):
    a = str(made(tmp_path / "a"))
    with pytest.raises(UserError, match="elsewhere is not an experiment"):
        diff.compare(a, tmp_path / "elsewhere")
    code, out, err = program("trainer.diff", a, "elsewhere")
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    code, out, err = program("trainer.diff", a, a)
    assert code == 0 and out.splitlines()[0] == "config: no difference"
    code, out, err = program("trainer.diff", a)
    assert (code, err) == (1, "error: give A B; B is missing\n")
