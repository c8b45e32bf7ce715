"""A step that is not finite: recorded, not applied, and replayed by the printed command."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import toy
from runs import weights

from trainer import checkpoints, flight
from trainer.config import UserError

v1 = tf.compat.v1


def test_a_step_that_is_not_finite_changes_nothing_and_is_recorded(train):
    keys = {"toy.nan_at": 12, "trainer.checkpoint_save_interval": 10}
    with pytest.raises(UserError) as error:
        train(keys=keys)
    message = str(error.value)
    folder = toy.config["trainer.experiment_base_dir"] + "/toy"
    assert "not finite in step 13" in message and "replay_step=13" in message
    assert checkpoints.steps(f"{folder}/checkpoint") == [10, 12]
    assert all(np.isfinite(value).all() for value in weights(folder).values())
    record = np.load(f"{folder}/flight/step-13.npz")
    assert record["step"] == 13 and record["id"][3] == b"12/3"
    assert np.isnan(record["loss"]) and np.isfinite(record["lr"])
    assert np.isnan(record["gradient_norm.out.kernel"])


def test_batch_norm_does_not_average_a_step_that_is_not_finite(train):
    keys = {"toy.norm": "batch", "trainer.checkpoint_save_interval": 12}
    whole = train("whole", keys={**keys, "model.num_steps": 12})
    with pytest.raises(UserError, match="not finite in step 13"):
        train("nan", keys={**keys, "toy.nan_at": 12, "model.num_steps": 20})
    saved = weights(os.path.dirname(whole) + "/nan")
    for name, value in weights(whole, 12).items():
        np.testing.assert_array_equal(saved[name], value, err_msg=name)


def test_a_memory_that_the_model_writes_before_the_check_is_repaired(train, monkeypatch):
    build = toy.build

    def remembering(inputs, train_phase):
        outputs = build(inputs, train_phase)
        with v1.variable_scope("memory", reuse=tf.compat.v1.AUTO_REUSE):
            zeros = v1.zeros_initializer()
            memory = v1.get_variable("values", [16], initializer=zeros, trainable=False)
            total = v1.get_variable("total", [], tf.int64, initializer=zeros, trainable=False)
        if train_phase:
            written = [memory.assign(inputs["y"]).op, total.assign_add(1).op]
            with tf.control_dependencies(written):
                outputs.loss += 0.0 * tf.reduce_sum(memory.read_value())
        return outputs

    monkeypatch.setattr(toy, "build", remembering)
    with pytest.raises(UserError, match="the weights before it are saved"):
        train(keys={"toy.nan_at": 12, "trainer.checkpoint_save_interval": 10})
    folder = toy.config["trainer.experiment_base_dir"] + "/toy"
    saved, before = weights(folder, 12), weights(folder, 10)
    assert saved["memory/total"] == before["memory/total"] == 10
    np.testing.assert_array_equal(saved["memory/values"], before["memory/values"])
    assert not np.array_equal(saved["out/kernel"], before["out/kernel"])
    with pytest.raises(UserError, match="the weights before it are saved"):
        train("first", keys={"toy.nan_at": 2})  # no checkpoint yet: the initial values
    assert not weights(toy.config["trainer.experiment_base_dir"] + "/first")["memory/values"].any()


def test_histograms_do_not_hide_the_step(train):
    keys = {"toy.nan_at": 3, "trainer.summary_histograms": True, "trainer.summary_save_interval": 1}
    with pytest.raises(UserError, match="not finite in step 4"):
        train(keys=keys)


@pytest.mark.parametrize("name", ["step", "file", "self", "loss"])
def test_any_name_of_an_entry_is_recorded(train, monkeypatch, name):
    batch = toy._batch
    monkeypatch.setattr(toy, "_batch", lambda n: {**batch(n), name: tf.fill([16], n)})
    with pytest.raises(UserError, match="not finite in step 3"):
        train(keys={"toy.nan_at": 2})
    folder = toy.config["trainer.experiment_base_dir"] + "/toy"
    with np.load(f"{folder}/flight/step-3.npz") as record:
        entry = "batch.step" if name == "step" else name
        assert record["step"] == 3 and (name == "loss" or (record[entry] == 2).all())


def test_a_record_that_cannot_be_written_does_not_hide_the_reason(train, capsys, monkeypatch):
    monkeypatch.setattr(flight, "_write", lambda *a: 1 / 0)
    with pytest.raises(UserError, match="not finite in step 3"):
        train(keys={"toy.nan_at": 2})
    assert "warning: without the record" in capsys.readouterr().err
    folder = toy.config["trainer.experiment_base_dir"] + "/toy"
    assert checkpoints.steps(f"{folder}/checkpoint") == [2]


@pytest.mark.parametrize(
    "words, flags",
    [
        (["--fresh", "--yes"], ["--toy.nan_at=3"]),
        (["-f", "--yes=true", "--nodebug"], ["--toy.nan_at=3"]),
        (["--fallback"], ["--toy.nan_at=3"]),
        (["--flagfile=my.flags"], ["--flagfile=my.flags", "--nofresh", "--noyes", "--nofallback"]),
    ],
)
def test_the_replay_command_deletes_nothing(monkeypatch, words, flags):
    monkeypatch.setattr(sys, "argv", ["trainer/main.py", "--toy.nan_at=3", *words])
    monkeypatch.setattr(flight.helptext, "running", lambda: "trainer.main")
    for started_as, program in (("", ["-m", "trainer.main"]), ("prototrain train", ["train"])):
        monkeypatch.setattr(flight.helptext, "started_as", started_as)
        found = shlex.split(flight.replay_command(4))
        assert found[1 : len(program) + 1] == program
        assert found[-2:] == ["--debug", "--replay_step=4"] and set(flags) <= set(found)
        assert not {"--fresh", "-f", "--yes", "--yes=true", "--fallback"} & set(found)


def test_a_script_gets_the_call_that_replays():
    """Its command line may do anything, such as train with fresh=True."""
    assert flight.replay_command(4) == "loop.train(model, config, debug=True, replay_step=4)"


def test_the_replay_command_runs_as_printed(program):
    code, out, err = program(
        "trainer.main", "--model=toy", "--toy.nan_at=5", "--fresh", "--yes",
        "--trainer.checkpoint_save_interval=2", "--trainer.experiment_name=a 'quoted' [1]$x",
    )  # fmt: skip
    assert code == 1 and "step 6" in err
    printed = err.strip().split("To replay the step: ")[1]
    folder = program.folder / "experiments" / "a 'quoted' [1]$x"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    done = subprocess.run(
        printed, shell=True, cwd=program.folder, env=program._environment, text=True,
        input="print('loss', run_step)\n", capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Available names: sess" in done.stdout, done.stderr
    assert "run_step" in done.stdout
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before
