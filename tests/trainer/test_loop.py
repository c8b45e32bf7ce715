"""Whole runs: resume, signals, configuration, bad input, what is written."""

import glob
import json
import os
import pathlib
import signal
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
import toy
from runs import assert_equal_runs, weights

from trainer import checkpoints, experiment, loop, meters
from trainer.config import UserError

v1 = tf.compat.v1


def read_json(folder, name):
    return json.loads(pathlib.Path(folder, name).read_text())


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
    # Each of these weights was rounded to float32 when it was stored, `both` counts twice.
    atol = 6 * 2.0**-24 * np.abs(start).max()
    np.testing.assert_allclose(second, expected - start, rtol=1e-4, atol=atol)


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
    assert [line["step"] for line in full] == [0, 10, 20]
    assert all(line["examples"] == 48 and line["mean_error"] > 0 for line in full)
    assert [line["step"] for line in lines if line["split"] == "vld"] == [0, 5, 10, 10, 15, 20, 20]

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
    errors = iter([9.0, 3.0, 1.0, 2.0, 2.5, 9.0, 9.0])  # the first is of step 0
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


def test_step_0_is_the_best_where_training_harms(train, monkeypatch):
    errors = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(toy, "metrics", lambda outputs: {"mean_error": next(errors)})
    monkeypatch.setattr(toy, "notes", lambda: ["what the data hold"], raising=False)
    keys = {"trainer.evaluation_interval": 10, "trainer.best_metric": "mean_error"}
    folder = train(keys=keys)
    assert checkpoints.steps(f"{folder}/checkpoint/best") == [0]
    assert checkpoints.steps(f"{folder}/checkpoint") == [0, 20]
    assert experiment.locate(toy, ())[1].endswith("best/model-0")


def test_averages_start_from_loaded_weights(train):
    before = train("before")
    keys = {"model.weights_load_path": f"{before}/checkpoint", "model.num_steps": 0}
    after = weights(train("after", keys={**keys, "model.ema_decay": 0.9}))
    average = after["out/kernel/ExponentialMovingAverage"]
    np.testing.assert_array_equal(average, weights(before)["out/kernel"])


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


def test_a_profile_of_some_steps_is_written_for_tensorboard(train, capsys):
    folder = train(keys={"trainer.profile_steps": [5, 7]})
    (trace,) = glob.glob(f"{folder}/summaries/trn/plugins/profile/*/*.xplane.pb")
    assert b"MatMul" in pathlib.Path(trace).read_bytes()
    train("short", keys={"trainer.profile_steps": [19, 1000]})  # ends before the profile does
    assert glob.glob(f"{os.path.dirname(folder)}/short/summaries/trn/plugins/profile/*/*.xplane.pb")
    train("late", keys={"trainer.profile_steps": [21, 30]})
    assert "profile_steps has no effect: there is no step 21" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"trainer.profile_steps.*\[7, 5\]"):
        train("other", keys={"trainer.profile_steps": [7, 5]})


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


def test_an_interval_of_0_means_never(train, capsys):
    names = ("print", "validation_step", "summary_save", "checkpoint_save")
    folder = train(keys={f"trainer.{name}_interval": 0 for name in names})
    lines = meters.read_metrics(folder)
    assert [(line["split"], line["step"]) for line in lines] == [("trn", 20)]
    assert checkpoints.steps(f"{folder}/checkpoint") == [20]
    assert capsys.readouterr().out.count("\nstep ") == 1
    (path,) = glob.glob(f"{folder}/summaries/trn/*")
    assert not any(event.summary.value for event in v1.train.summary_iterator(path))


@pytest.mark.parametrize("name", ["RuntimeError", "KeyError", "MemoryError", "ValueError"])
def test_an_error_of_the_models_own_code_loses_nothing(train, name):
    keys = {"toy.raise_at": 7, "toy.raises": name}
    expected = UserError if name == "MemoryError" else tf.errors.OpError
    with pytest.raises(expected, match="in the model"):
        train("failed", keys=keys)
    folder = toy.config["trainer.experiment_base_dir"] + "/failed"
    assert weights(folder)["global_step"] == 7
    whole = train("whole", keys={"toy.raise_at": 1000})
    assert_equal_runs(whole, train("failed"))


def test_an_error_in_validation_loses_nothing(train, monkeypatch):
    def fails(x):
        raise KeyError("in validation")

    def build(inputs, train_phase):
        outputs = plain(inputs, train_phase)
        if not train_phase:
            failed = tf.numpy_function(fails, [outputs.loss], tf.float32)
            outputs.loss += tf.ensure_shape(failed, [])
        return outputs

    plain = toy.build
    monkeypatch.setattr(toy, "build", build)
    with pytest.raises(tf.errors.OpError, match="in validation"):
        train(keys={"trainer.validation_step_interval": 7})
    assert weights(toy.config["trainer.experiment_base_dir"] + "/toy")["global_step"] == 7


def test_an_error_in_the_middle_of_an_update_saves_nothing(train, monkeypatch):
    def create(config, rate, decayed, step):
        class Failing(v1.train.GradientDescentOptimizer):
            def _resource_apply_dense(self, grad, var):
                check = v1.assert_less(v1.train.get_global_step(), np.int64(12))
                with tf.control_dependencies([check]):
                    return super()._resource_apply_dense(tf.identity(grad), var)

        return Failing(rate)

    monkeypatch.setattr(loop.optimizers, "create", create)
    with pytest.raises(tf.errors.InvalidArgumentError):
        train(keys={"trainer.checkpoint_save_interval": 10})
    folder = toy.config["trainer.experiment_base_dir"] + "/toy"
    assert checkpoints.steps(f"{folder}/checkpoint") == [10]


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_folder_that_goes_away_is_noticed_and_stays_away(train, monkeypatch, tmp_path, replaced):
    folder = pathlib.Path(toy.config["trainer.experiment_base_dir"], "toy")

    def metrics(outputs):
        if not (tmp_path / "moved").exists():
            os.rename(folder, tmp_path / "moved")
            if replaced:
                (folder / "checkpoint").mkdir(parents=True)
        return {"mean_error": 1.0}

    monkeypatch.setattr(toy, "metrics", metrics)
    with pytest.raises(UserError, match="was removed or replaced during the run"):
        train(keys={"trainer.evaluation_interval": 10, "trainer.checkpoint_save_interval": 10})
    assert os.path.exists(folder) == replaced
    assert not replaced or os.listdir(folder / "checkpoint") == []


def test_training_runs_in_a_thread_with_a_model_that_has_no_file(train):
    model = types.ModuleType("cell")
    model.config, model.datasets, model.build = toy.config, toy.datasets, toy.build
    assert not hasattr(model, "__file__")
    folders = []
    thread = threading.Thread(target=lambda: folders.append(train(model=model)))
    thread.start()
    thread.join()
    assert weights(folders[0])["global_step"] == 20


def test_a_damaged_newest_checkpoint_is_named_and_stepped_over(train, program, tmp_path):
    folder = train(keys={"trainer.checkpoint_save_interval": 10, "model.num_steps": 30})
    (data,) = glob.glob(f"{folder}/checkpoint/model-30.data*")
    whole = pathlib.Path(data).read_bytes()
    pathlib.Path(data).write_bytes(whole[: len(whole) // 2])
    arguments = ["trainer.main", "--model=toy", "--model.num_steps=30"]
    code, out, err = program(*arguments)
    assert code == 1 and err.count("\n") == 1
    assert "checkpoint/model-30 is damaged" in err and "--fallback" in err
    code, out, err = program(*arguments, "--fallback", "--trainer.checkpoint_save_interval=10")
    assert code == 0 and "set aside as damaged: experiments/toy/checkpoint/model-30" in out, err
    assert "resuming at step 20" in out and weights(folder)["global_step"] == 30
    assert os.path.exists(f"{data}.damaged")


MEMORY = """
import gc, sys
from trainer import quiet; quiet.import_tensorflow()
import psutil, toy
from trainer import loop
toy.config.update({"trainer.evaluation_interval": 10, "model.num_steps": 20})
sizes = []
for i in range(14):
    toy.config["trainer.experiment_name"] = f"run-{i}"
    loop.train(toy, toy.config)
    gc.collect()
    sizes.append(psutil.Process().memory_info().rss >> 10)
import tensorflow as tf
graphs = sum(isinstance(o, tf.Graph) for o in gc.get_objects())
print("measured", graphs, *sizes)
"""


def test_many_runs_in_one_process_keep_no_graphs_and_no_memory(program, tmp_path):
    (tmp_path / "many.py").write_text(MEMORY)
    code, out, err = program("many")
    assert code == 0, err
    graphs, *kib = map(int, out.splitlines()[-1].split()[1:])
    assert graphs <= 2
    assert kib[-1] - kib[3] < 30 << 10, kib  # ten runs


THREADS = """
import os, sys
from trainer import quiet; quiet.import_tensorflow()
import tensorflow as tf, toy
from trainer import loop
toy.config["trainer.experiment_name"] = sys.argv[1]
toy.config["trainer.intra_op_threads"] = int(sys.argv[1])
plain = toy.datasets
def datasets(start_step=0):
    with tf.init_scope():  # starts TensorFlow's threads, as reading a table eagerly does
        tf.data.Dataset.range(3).cardinality()
    return plain(start_step)
toy.datasets = datasets
def metrics(outputs):
    print("threads", len(os.listdir("/proc/self/task")))
    return {"x": 0.0}
toy.metrics = metrics
toy.config["trainer.evaluation_interval"] = 20
loop.train(toy, toy.config)
"""


def test_threads_within_an_operation_are_as_many_as_set(program, tmp_path):
    (tmp_path / "threads.py").write_text(THREADS)

    def threads(count):
        code, out, err = program("threads", str(count))
        assert code == 0 and "no effect" not in err, err
        return int(out.split("threads ")[1].split()[0])

    assert threads(40) - threads(1) >= 35


def test_threads_that_come_too_late_are_warned_of(train, capsys):
    train("first", keys={"trainer.intra_op_threads": 0})
    train("second", keys={"trainer.intra_op_threads": 7})
    assert "warning: trainer.intra_op_threads=7 has no effect" in capsys.readouterr().err


def test_a_filter_without_its_key_is_warned_of(train, capsys):
    train(keys={"model.weight_decay.filter_regex": "kernel"})
    warned = "warning: model.weight_decay.filter_regex has no effect without model.weight_decay."
    assert warned in capsys.readouterr().err
