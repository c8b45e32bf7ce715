"""Whole runs: resume, signals, configuration, bad input, what is written."""

import glob
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
import toy

from trainer import checkpoints, loop, meters
from trainer.config import UserError

v1 = tf.compat.v1


def weights(folder, step=None):
    """Every variable of a checkpoint, slots and step included."""
    prefix = checkpoints.latest(f"{folder}/checkpoint")
    if step is not None:
        prefix = f"{folder}/checkpoint/model-{step}"
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in checkpoints.shapes(prefix)}


def read_json(folder, name):
    return json.loads(pathlib.Path(folder, name).read_text())


def assert_equal_runs(a, b):
    """Bit for bit the same weights, slots and metrics."""
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name], err_msg=name)
    assert meters.read_metrics(a) == meters.read_metrics(b)


OPTIONS = {
    "adam, warm-up, averages": {
        "model.optimizer.method": "adam",
        "model.lr_schedule.method": "cosine",
        "model.lr_schedule.warmup_steps": 3,
        "model.ema_decay": 0.9,
        "trainer.evaluation_interval": 10,
    },
    "momentum, accumulation": {"model.gradient_accumulation_steps": 3},
    "lamb, decay, batch norm": {
        "model.optimizer.method": "lamb",
        "model.weight_decay": 0.01,
        "toy.norm": "batch",
    },
}


@pytest.mark.parametrize("keys", OPTIONS.values(), ids=OPTIONS)
def test_two_halves_equal_one_run(train, keys):
    keys = {"model.lr_schedule.cosine.value": 0.01, **keys}
    whole = train("whole", keys=keys)
    # A schedule that ends at num_steps would change with it: stop at a checkpoint instead.
    halves = train("halves", keys={"trainer.checkpoint_save_interval": 10, **keys})
    for path in glob.glob(f"{halves}/checkpoint/model-20.*"):
        os.remove(path)
    assert checkpoints.latest(f"{halves}/checkpoint").endswith("model-10")
    train("halves")
    assert_equal_runs(whole, halves)


def test_the_same_seed_gives_the_same_run_and_another_does_not(train):
    a, b = train("a"), train("b")
    assert_equal_runs(a, b)
    c = train("c", keys={"trainer.random_seed": "other"})
    assert not np.array_equal(weights(a)["out/kernel"], weights(c)["out/kernel"])


def test_steps_are_completed_updates(train):
    folder = train(keys={"model.num_steps": 7, "trainer.checkpoint_save_interval": 3})
    assert checkpoints.steps(f"{folder}/checkpoint") == [3, 6, 7]
    assert [weights(folder, step)["global_step"] for step in (3, 6, 7)] == [3, 6, 7]
    lines = [line["step"] for line in meters.read_metrics(folder) if line["split"] == "trn"]
    assert lines == list(range(1, 8))


def test_accumulated_batches_train_like_one_large_batch(train):
    def gradient_free(folder):
        return weights(folder)["out/kernel"]

    # Without dropout the mean of two batches' gradients is the gradient of both together. The toy
    # data differ by batch size, so compare with an update computed by hand from two runs of one.
    keys = {"toy.dropout": 0.0, "model.num_steps": 1, "model.optimizer.method": "sgd"}
    start = weights(train("start", keys={**keys, "model.num_steps": 0}))["out/kernel"]
    first = gradient_free(train("first", keys=keys)) - start
    both = gradient_free(train("both", keys={**keys, "model.gradient_accumulation_steps": 2}))
    second = 2 * (both - start) - first
    # The second batch's gradient at the start, from a run whose data begins one batch later.
    toy_batch, toy._batch = toy._batch, lambda number: toy_batch(number + 1)
    try:
        expected = gradient_free(
            train("second", keys={**keys, "model.gradient_accumulation_steps": 1})
        )
    finally:
        toy._batch = toy_batch
    np.testing.assert_allclose(second, expected - start, rtol=1e-4, atol=1e-7)


def test_interrupted_by_sigterm_and_resumed_equals_uninterrupted(program, tmp_path):
    arguments = ["trainer.main", "--model=toy", "--model.num_steps=200", "--toy.seconds=0.01"]
    code, out, err = program(*arguments, "--trainer.experiment_name=whole")
    assert code == 0, err
    halves = tmp_path / "experiments" / "halves"

    def at_100():
        lines = meters.read_metrics(halves)
        return bool(lines) and lines[-1]["step"] >= 100

    arguments.append("--trainer.experiment_name=halves")
    code, out, err = program.interrupt(at_100, *arguments)
    assert code == 0, err
    stopped = checkpoints.step_of(checkpoints.latest(halves / "checkpoint"))
    assert 100 <= stopped < 200
    assert f"stopped at step {stopped} (SIGTERM)" in out and "the same command resumes" in out
    code, out, err = program(*arguments)
    assert code == 0 and f"resuming at step {stopped}" in out, err
    assert_equal_runs(tmp_path / "experiments" / "whole", halves)


def test_killed_and_resumed_equals_uninterrupted(program, tmp_path, train):
    arguments = ["trainer.main", "--model=toy", "--model.num_steps=40", "--toy.seconds=0.1"]
    arguments += ["--trainer.checkpoint_save_interval=10"]
    folder = tmp_path / "experiments" / "toy"

    def at_25():
        lines = meters.read_metrics(folder)
        return bool(lines) and lines[-1]["step"] >= 25

    code, _, _ = program.interrupt(at_25, *arguments, by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, out, err = program(*arguments)
    assert code == 0 and ("resuming at step 20" in out or "resuming at step 30" in out), err
    whole = train("whole", keys={"model.num_steps": 40})
    assert_equal_runs(whole, folder)


def test_a_second_trainer_is_refused(program, tmp_path, train):
    folder = tmp_path / "experiments" / "toy"
    process = program.start(
        "trainer.main", "--model=toy", "--toy.seconds=0.05", "--model.num_steps=100000"
    )
    try:
        while not meters.read_metrics(folder):
            assert process.poll() is None
        with pytest.raises(UserError, match=f"toy: process {process.pid} on .* is writing"):
            train()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "(SIGINT)" in out, err
    finally:
        process.kill()


def test_a_second_signal_leaves_at_once_with_the_last_checkpoint(program):
    folder = program.folder / "experiments" / "toy"
    program("trainer.main", "--model=toy", "--model.num_steps=3")
    process = program.start(
        "trainer.main",
        "--model=toy",
        "--model.num_steps=9",
        "--toy.seconds=60",
        "--toy.dropout=0.1",
    )
    try:
        while "resuming at step 3" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)  # into the first step, which waits a minute for its batch
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert checkpoints.steps(folder / "checkpoint") == [3]


def test_what_a_run_writes(train):
    keys = {"trainer.evaluation_interval": 10, "trainer.summary_save_interval": 10}
    folder = train(keys={**keys, "trainer.summary_histograms": True})
    text = pathlib.Path(folder, "config.txt").read_text()
    assert "model.num_steps" in text and len(text.splitlines()) == len(toy.config)
    assert read_json(folder, "config.json") == toy.config.to_dict()
    (start,) = read_json(folder, "provenance.json")
    assert start["model"] == "toy" and start["packages"]["tensorflow"] == tf.__version__

    lines = meters.read_metrics(folder)
    full = [line for line in lines if "examples" in line]
    assert [line["step"] for line in full] == [10, 20]
    assert all(line["examples"] == 48 and line["mean_error"] > 0 for line in full)
    assert [line["step"] for line in lines if line["split"] == "vld"] == [5, 10, 10, 15, 20, 20]

    def events(split):
        (path,) = glob.glob(f"{folder}/summaries/{split}/*")
        return {
            (event.step, value.tag)
            for event in tf.compat.v1.train.summary_iterator(path)
            for value in event.summary.value
        }

    tags = {tag for step, tag in events("trn") if step == 10}
    assert {"loss", "lr", "gradient_norm"} <= tags and any("toy/hidden" in t for t in tags)
    assert {"weights/out/kernel", "gradients/out/kernel"} <= tags
    assert {step for step, _ in events("trn")} == {10, 20}
    assert (20, "mean_error") in events("vld")


def test_best_checkpoint_and_early_stopping(train, monkeypatch):
    errors = iter([3.0, 1.0, 2.0, 2.5, 9.0, 9.0])
    monkeypatch.setattr(toy, "metrics", lambda outputs: {"mean_error": next(errors)})
    folder = train(
        keys={
            "model.num_steps": 60,
            "trainer.evaluation_interval": 10,
            "trainer.best_metric": "mean_error",
            "trainer.early_stopping_patience": 2,
            "trainer.max_checkpoints_to_keep": 1,
        }
    )
    assert checkpoints.steps(f"{folder}/checkpoint/best") == [20]
    assert checkpoints.steps(f"{folder}/checkpoint") == [40]
    # Resuming does not forget: one more pass without a better figure stops again.
    train()
    assert checkpoints.steps(f"{folder}/checkpoint") == [50]


def test_a_best_metric_that_nobody_reports(train):
    keys = {"trainer.evaluation_interval": 10, "trainer.best_metric": "mean_eror"}
    with pytest.raises(UserError, match=r"'mean_eror'.*Did you mean 'mean_error'"):
        train(keys=keys)


def test_training_on_goes_on_and_a_different_run_is_refused(train, capsys):
    folder = train()
    train(keys={"model.num_steps": 25})
    assert "resumed with model.num_steps: 20 -> 25" in capsys.readouterr().out
    with pytest.raises(UserError, match="random_seed: '0' -> '1'.*--allow_config_change"):
        train(keys={"trainer.random_seed": "1", "model.num_steps": 30})
    assert read_json(folder, "config.json")["trainer.random_seed"] == "0"
    train(allow_config_change=True)
    assert checkpoints.steps(f"{folder}/checkpoint") == [20, 25, 30]


def test_weights_of_another_experiment(train, capsys):
    first = train("first")
    second = train("second", keys={"model.num_steps": 0, "model.weights_load_path": first})
    a, b = weights(first), weights(second)
    assert b["global_step"] == 0
    for name in ("hidden/kernel", "out/kernel"):
        np.testing.assert_array_equal(a[name], b[name])
    assert f"weights from {first}/checkpoint/model-20: 4 loaded" in capsys.readouterr().out


def test_only_chosen_variables_move(train):
    key = "model.trainable_variables.filter_regex"
    start = weights(train("start", keys={"model.num_steps": 0}))
    end = weights(train("end", keys={"model.num_steps": 5, key: "^out/"}))
    np.testing.assert_array_equal(start["hidden/kernel"], end["hidden/kernel"])
    assert not np.array_equal(start["out/kernel"], end["out/kernel"])


def test_weight_decay_shrinks_what_it_chooses(train):
    keys = {"model.optimizer.method": "sgd", "model.num_steps": 1, "toy.dropout": 0.0}
    plain = weights(train("plain", keys=keys))
    start = weights(train("start", keys={"model.num_steps": 0}))
    regex = {"model.weight_decay": 0.5, "model.weight_decay.filter_regex": "^out/kernel"}
    decayed = weights(train("decayed", keys={**keys, **regex}))
    expected = plain["out/kernel"] - 0.02 * 0.5 * start["out/kernel"]
    np.testing.assert_allclose(decayed["out/kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(decayed["hidden/kernel"], plain["hidden/kernel"])


def test_a_step_that_is_not_finite_changes_nothing_and_is_recorded(train):
    keys = {"toy.nan_at": 12, "trainer.checkpoint_save_interval": 10}
    with pytest.raises(UserError) as error:
        train(keys=keys)
    message = str(error.value)
    folder = toy.config["trainer.experiment_base_dir"] + "/toy"
    assert "not finite in step 13" in message and "--replay_step=13" in message
    assert checkpoints.steps(f"{folder}/checkpoint") == [10, 12]
    assert all(np.isfinite(value).all() for value in weights(folder).values())
    record = np.load(f"{folder}/flight/step-13.npz")
    assert record["step"] == 13 and record["id"][3] == b"12/3"
    assert np.isnan(record["loss"]) and np.isfinite(record["lr"])
    assert np.isnan(record["gradient_norm.out.kernel"])


def test_an_unreadable_picture_is_named_and_loses_nothing(program, tmp_path):
    code, out, err = program("trainer.main", "--model=toy", "--toy.bad_at=8")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    assert "cannot read image 'shelf/42.jpg' (truncated): mend or remove it" in err
    folder = tmp_path / "experiments" / "toy"
    assert weights(folder)["global_step"] == 8


def test_a_checkpoint_of_another_shape(train, monkeypatch):
    train()
    small = toy.layers.dense
    monkeypatch.setattr(toy.layers, "dense", lambda x, n, name: small(x, n + (n == 8), name))
    with pytest.raises(UserError, match=r"hidden/kernel is \[4, 8\] there and \[4, 9\] here"):
        train(keys={"model.num_steps": 30})


def test_a_folder_that_cannot_be_written(program, tmp_path):
    (tmp_path / "experiments").write_text("a file, not a folder")
    code, out, err = program("trainer.main", "--model=toy")
    assert code == 1 and err.count("\n") == 1
    assert "Cannot write to the experiment folder experiments/toy" in err
    assert "--trainer.experiment_base_dir" in err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"datasets": lambda: {"vld": None}}, "has no 'trn' among vld"),
        ({"build": lambda inputs, train_phase: None}, "must return a ModelDict"),
        ({"build": lambda inputs, train_phase: {"x": inputs["x"]}}, "must set a scalar `loss`"),
        (
            {"datasets": lambda: {"trn": tf.data.Dataset.from_tensors({"x": np.zeros([3, 4])})}},
            "3 examples of 'x' per batch, but model.batch_size=16",
        ),
        (
            {"datasets": lambda: {"trn": tf.data.Dataset.from_tensors(np.zeros([16, 4]))}},
            "must yield dicts",
        ),
        (
            {"datasets": lambda: {"trn": toy._datasets(0)["trn"].take(3)}},
            r"ended\. Add \.repeat\(\)",
        ),
    ],
)
def test_a_model_that_breaks_its_contract(train, monkeypatch, change, message):
    monkeypatch.setattr(toy, "_datasets", toy.datasets, raising=False)
    for name, value in change.items():
        monkeypatch.setattr(toy, name, value)
    with pytest.raises(UserError, match=message):
        train()


def own_pipeline(stateful=False):
    """Datasets without a start_step: shuffled, repeated, decoded in parallel."""

    def batch(number):
        values = toy._batch(number)
        if stateful:
            values["x"] += tf.random.normal(values["x"].shape, seed=3)
        return values

    data = tf.data.Dataset.range(50).shuffle(20, seed=1).repeat()
    return {"trn": data.map(batch, num_parallel_calls=2)}


def test_a_users_own_iterator_is_resumed_where_it_was(train, monkeypatch):
    monkeypatch.setattr(toy, "datasets", lambda: own_pipeline())
    whole = train("whole")
    halves = train("halves", keys={"trainer.checkpoint_save_interval": 10})
    for path in glob.glob(f"{halves}/checkpoint/*-20.*"):
        os.remove(path)
    train("halves")
    assert_equal_runs(whole, halves)


def test_state_that_cannot_be_saved_is_said_and_never_repeated(train, monkeypatch, capsys):
    monkeypatch.setattr(toy, "datasets", lambda: own_pipeline(stateful=True))
    train(keys={"model.num_steps": 5})
    said = capsys.readouterr().out
    assert "cannot be saved (RandomStandardNormal)" in said and "start_step" in said
    folder = train(keys={"model.num_steps": 10})
    losses = [line["loss"] for line in meters.read_metrics(folder)]
    assert len(losses) == 10 and not np.allclose(losses[:5], losses[5:], rtol=0.01)


def test_changed_data_is_refused(train, monkeypatch):
    train()
    batch = toy._batch
    monkeypatch.setattr(toy, "_batch", lambda n: {**batch(n), "extra": tf.zeros([16])})
    with pytest.raises(UserError, match="other shapes or types.*--allow_config_change"):
        train(keys={"model.num_steps": 30})
    train(allow_config_change=True)


def test_a_profile_of_some_steps_is_written_for_tensorboard(train):
    folder = train(keys={"trainer.profile_steps": [5, 7]})
    (trace,) = glob.glob(f"{folder}/summaries/trn/plugins/profile/*/*.xplane.pb")
    assert b"MatMul" in pathlib.Path(trace).read_bytes()
    with pytest.raises(UserError, match=r"trainer.profile_steps.*\[7, 5\]"):
        train("other", keys={"trainer.profile_steps": [7, 5]})


def test_a_collapse_is_warned_of_once():
    collapse = meters.Collapse()
    spreads = [0.5, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4]
    said = [collapse.check({"embedding_spread": s, "loss": 0.2}) for s in spreads]
    assert [bool(text) for text in said] == [False, False, False, True, False, False]
    assert "loss 0.2" in said[3] and "collapsed" in said[3]
    assert collapse.check({"loss": 1.0}) is None


@pytest.mark.parametrize("keys", [{"trainer.xla": True}, {"trainer.mixed_precision": "bfloat16"}])
def test_compiled_and_mixed_precision_train_alike(train, keys):
    plain = [line["loss"] for line in meters.read_metrics(train("plain"))]
    other = [line["loss"] for line in meters.read_metrics(train("other", keys=keys))]
    np.testing.assert_allclose(other, plain, rtol=0.1)


def test_a_copied_loop_runs(program, tmp_path):
    source = pathlib.Path(loop.__file__).read_text()
    assert len(source.splitlines()) < 400
    (tmp_path / "my_loop.py").write_text(source.replace("done: step", "my loop is done: step"))
    code, out, err = program("trainer.main", "--model=toy", "--trainer=my_loop")
    assert code == 0 and "my loop is done: step 20" in out, err


def test_debug_opens_ipython_with_the_names_it_promises(program):
    typed = "print([type(x).__name__ for x in (sess, towers, datasets, config)])\n"
    code, out, err = program("trainer.main", "--model=toy", "--debug", text=typed)
    assert code == 0, err
    assert "You have: sess, model, towers, datasets, config" in out
    assert "['Session', 'list', 'dict', 'Config']" in out
