"""Several workers of one training, in processes of their own."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from PIL import Image
from runs import assert_equal_runs, assert_equal_weights, weights

from trainer import checkpoints, cluster, listener, meters
from trainer.config import UserError

HERE = pathlib.Path(__file__).parent
BUSY = 120  # seconds after which a process of a test counts as hanging, on a busy machine


class Worker:
    """One process."""

    def __init__(self, pid, log):
        self.pid, self._log = pid, log

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def text(self):
        return self._log.read_text()

    @property
    def code(self):
        path = pathlib.Path(f"{self._log}.code")
        return int(path.read_text()) if path.exists() else None

    def wait(self):
        until(lambda: self.code is not None, lambda: self.text)
        return self.code


class Workers:
    """Starts workers in a folder."""

    def __init__(self, server, folder):
        self.server, self.folder, self.started = server, folder, []

    def one(self, arguments, environment=None, **order):
        log = self.folder / f"log-{len(self.started)}"
        log.touch()
        order |= {"log": str(log), "folder": str(self.folder), "environment": environment or {}}
        order["arguments"] = ["--trainer.experiment_base_dir=.", *arguments]
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        self.started.append(Worker(int(self.server.stdout.readline()), log))
        return self.started[-1]

    def several(self, count, *arguments, **order):
        """Starts all workers of a group; returns them."""
        ports = [listener.free_port() for _ in range(count)]
        jobs = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        return [self.one(arguments, config_of(jobs, task), **order) for task in range(count)]

    def run(self, name, *arguments, count=2, towers=1, model="toy_global"):
        """Trains to the end; returns the experiment's folder."""
        flags = flags_of(name, model, f"--trainer.num_towers={towers}", *arguments)
        group = self.several(count, *flags) if count > 1 else [self.one(flags)]
        assert [worker.wait() for worker in group] == [0] * count, group[0].text
        return str(self.folder / name)


def config_of(jobs, task):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": "worker", "index": task}})}


def flags_of(name, model, *arguments):
    return [f"--model={model}", f"--trainer.experiment_name={name}", *arguments]


def until(holds, text=lambda: ""):
    limit = time.monotonic() + BUSY
    while not holds():
        assert time.monotonic() < limit, text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server():
    path = os.pathsep.join(map(str, (HERE.parent.parent, HERE)))
    process = subprocess.Popen(
        [sys.executable, str(HERE / "workers.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def workers(server, tmp_path_factory):
    found = Workers(server, tmp_path_factory.mktemp("workers"))
    yield found
    for worker in found.started:
        if worker.code is None:
            worker.send(signal.SIGKILL)


# Everything that a step may have, and a checkpoint now and then.
FLAGS = (
    "--model.num_steps=40",
    "--model.optimizer.method=adam",
    "--model.ema_decay=0.9",
    "--model.weight_decay=0.01",
    "--model.gradient_accumulation_steps=2",
    "--model.clip_gradients.global_norm=1",
    "--trainer.evaluation_interval=15",
    "--trainer.summary_save_interval=10",
    "--trainer.checkpoint_save_interval=7",
)


@pytest.fixture(scope="module")
def whole(workers):
    """The run that nothing disturbs: one process with two towers."""
    return workers.run("whole", *FLAGS, count=1, towers=2)


def test_two_workers_are_bit_equal_to_two_towers(workers, whole):
    assert_equal_runs(workers.run("two", *FLAGS), whole)


def test_two_workers_with_two_towers_train_as_four_towers(workers):
    flags = ("--model.num_steps=20", "--toy.norm=batch", "--model.batch_size=32")
    wide = weights(workers.run("two-two", *flags, towers=2, model="toy"))
    for name, value in weights(workers.run("four", *flags, count=1, towers=4, model="toy")).items():
        # A bias in front of a batch norm has no gradient but rounding: hence a floor.
        assert abs(wide[name] - value).max() <= 1e-5 * max(abs(value).max(), 0.1), name


def test_what_a_loss_reads_of_all_workers(workers):
    """Rows of every type in the order of the batch; proxies; a memory; only what is asked for."""
    flags = ("--model.num_steps=12", "--model.batch_size=32")
    one = workers.run("memory-1", *flags, count=1, towers=2, model="toy_memory")
    assert_equal_weights(workers.run("memory-2", *flags, model="toy_memory"), one)
    # In 16 bits, what is exchanged keeps its 32: the loss is no bfloat16, which has 8 bits.
    flags = ("--model.num_steps=1", *flags[1:], "--trainer.mixed_precision=bfloat16")
    (line, *_) = meters.read_metrics(workers.run("memory-16", *flags, model="toy_memory"))
    loss, exact = np.float32(line["loss"]), meters.read_metrics(one)[0]["loss"]
    assert abs(loss - exact) <= 0.02 * exact and loss.view(np.int32) & 0xFFFF


def test_the_ranker_trains_as_on_two_towers(workers, tmp_path):
    """Products of some categories per batch, a memory, moving averages and accumulation."""
    random = np.random.default_rng(0)
    lines = ["path,label,category,split"]
    for n in range(48):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png,p{n // 4},c{n // 4 % 3},train")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(8, 3, 2)]
    layers += [keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential([keras.Input((16, 16, 3)), *layers]).save(tmp_path / "network.keras")
    flags = [
        *("--dataset.name=manifest", f"--dataset.base_path={tmp_path}/shop.csv"),
        *(f"--model.hub_address=keras:{tmp_path}/network.keras", "--model.hub_input_range=0,255"),
        *("--model.default_image_dimensions=16,16,3", "--model.batch_size=8"),
        *("--model.num_steps=6", "--trainer.print_interval=1"),
        *("--dataset.sampler=hierarchical", "--dataset.categories_per_batch=2"),
        *("--dataset.images_per_product=2", "--model.gradient_accumulation_steps=2"),
        *("--model.loss=contrastive", "--model.memory_size=40", "--model.memory_start=1"),
        *("--model.ema_decay=0.9", "--nodataset.validation", "--trainer.evaluation_interval=0"),
    ]
    one = workers.run("ranker-1", *flags, count=1, towers=2, model="models.ranker")
    assert_equal_weights(workers.run("ranker-2", *flags, model="models.ranker"), one)


@pytest.mark.parametrize("count", [2, 11])
def test_rows_are_in_the_order_of_the_workers_numbers_and_means_are_exact(workers, count):
    group = workers.several(count, call="semantics")
    for worker in group:
        assert worker.wait() == 0 and worker.text.splitlines()[-1] == "equal", worker.text


# ---------------------------------------------------------------------------- failures


def disturbed(workers, name, hurt, *arguments, step=17):
    """Starts a group, calls `hurt(group)` at a step; returns the group when all have ended."""
    flags = flags_of(name, "toy_global", *FLAGS, "--toy.seconds=0.02", *arguments)
    group = workers.several(2, *flags)
    until(
        lambda: any(line["step"] >= step for line in meters.read_metrics(workers.folder / name)),
        lambda: group[0].text + group[1].text,
    )
    hurt(group)
    return group


def resumed(workers, name):
    """Starts the group again, the chief last; returns the folder."""
    flags = flags_of(name, "toy_global", *FLAGS, "--toy.seconds=0.02")
    ports = [listener.free_port() for _ in range(2)]
    jobs = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    late = workers.one(flags, config_of(jobs, 1))
    time.sleep(1)
    group = [workers.one(flags, config_of(jobs, 0)), late]
    assert [worker.wait() for worker in group] == [0, 0], group[0].text + group[1].text
    return str(workers.folder / name)


@pytest.mark.parametrize("victim", ["worker", "chief"])
def test_after_a_kill_everybody_ends_and_the_group_resumes_bit_equal(workers, whole, victim):
    dead, left = (1, 0) if victim == "worker" else (0, 1)
    name = f"kill-{victim}"
    group = disturbed(workers, name, lambda group: group[dead].send(signal.SIGKILL))
    assert group[left].wait() == cluster.EXIT_LOST and f"lost worker {dead}" in group[left].text
    assert "Traceback" not in group[left].text
    last = checkpoints.steps(workers.folder / name / "checkpoint")[-1]
    # The chief saves at the very step; of a dead chief its last checkpoint is left.
    assert last >= 17 if victim == "worker" else last % 7 == 0
    assert_equal_runs(resumed(workers, name), whole)


def test_a_signal_to_one_worker_stops_all_at_one_step_and_they_resume_bit_equal(workers, whole):
    group = disturbed(workers, "term", lambda group: group[1].send(signal.SIGTERM))
    assert [worker.wait() for worker in group] == [0, 0]
    last = checkpoints.steps(workers.folder / "term" / "checkpoint")[-1]
    assert f"stopped at step {last} (another worker was asked to)" in group[0].text
    assert 17 <= last < 40
    assert_equal_runs(resumed(workers, "term"), whole)


def test_a_frozen_worker_or_chief_is_found_by_the_timeout(workers):
    timeout = "--trainer.cluster_timeout=12"  # a busy machine pauses for seconds
    groups = [
        disturbed(workers, "frozen", lambda group: group[1].send(signal.SIGSTOP), timeout),
        disturbed(workers, "frozen-chief", lambda group: group[0].send(signal.SIGSTOP), timeout),
    ]
    chief, other = groups[0][0], groups[1][1]
    assert chief.wait() == other.wait() == cluster.EXIT_LOST
    assert "did not answer in 12 s" in chief.text and "did not answer in 12 s" in other.text
    groups[0][1].send(signal.SIGKILL)
    groups[1][0].send(signal.SIGCONT)  # it wakes up, and saves
    assert groups[1][0].wait() == cluster.EXIT_LOST
    for name in ("frozen", "frozen-chief"):
        assert checkpoints.steps(workers.folder / name / "checkpoint")[-1] >= 17


def test_a_chief_that_dies_before_the_first_step_ends_the_others(workers):
    ports = [listener.free_port() for _ in range(2)]
    jobs = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    flags = flags_of("early-death", "toy_global", "--trainer.cluster_timeout=5")
    group = [workers.one(flags, config_of(jobs, 0))]
    until(lambda: listener.answers(jobs["worker"][0], 1), lambda: group[0].text)
    group.append(workers.one(flags, config_of(jobs, 1)))
    until(lambda: listener.answers(jobs["worker"][1], 1), lambda: group[1].text)
    group[0].send(signal.SIGKILL)
    assert group[1].wait() == cluster.EXIT_LOST
    # Soon, or as one whose chief has yet to come.
    assert re.search("lost worker 0|did not answer in 5 s", group[1].text)


def test_a_run_goes_on_with_another_number_of_workers(workers, whole):
    short = [flag.replace("=40", "=20") for flag in FLAGS]
    folder = workers.run("grown", *short, count=1)
    grown = weights(workers.run("grown", *FLAGS))
    for name, value in weights(whole).items():
        assert abs(grown[name] - value).max() <= 1e-5 * max(abs(value).max(), 0.1), name
    assert meters.read_metrics(folder)[-1]["step"] == 40


def test_the_chief_alone_validates_and_all_stop_early_at_one_step(workers):
    flags = ("--trainer.evaluation_interval=3", "--trainer.best_metric=max:loss")
    patience = "--trainer.early_stopping_patience=1"
    workers.run("early", *flags, patience, "--model.num_steps=9")
    chief, other = workers.started[-2:]
    assert "stopped at step 3 (no better loss since step 0)" in chief.text
    assert checkpoints.steps(workers.folder / "early" / "checkpoint") == [0, 3]
    assert "step" not in other.text


def test_a_step_that_is_not_finite_ends_all_in_one_line_and_is_recorded_once(workers):
    group = workers.several(2, *flags_of("nan", "toy_global", "--toy.nan_at=5"))
    assert [worker.wait() for worker in group] == [1, 1]
    for worker in group:
        assert "not finite in step 6" in worker.text and "Traceback" not in worker.text
    assert (workers.folder / "nan" / "flight" / "step-6.npz").exists()
    assert checkpoints.steps(workers.folder / "nan" / "checkpoint") == [5]


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "what, message",
    [
        ("configuration", "model.num_steps is 3 there and 2 at the chief"),
        ("version", "tensorflow is '1.15.5' there and"),
        ("data set", "digest is 'other' there and 'same' at the chief"),
    ],
)
def test_a_worker_that_differs_is_refused_by_name(workers, what, message):
    ports = [listener.free_port() for _ in range(2)]
    jobs = {"worker": [f"localhost:{port}" for port in ports]}
    flags = flags_of(f"refused-{what[:4]}", "toy_digest", "--model.num_steps=2")
    other, order = flags, {}
    if what == "configuration":
        other = [*flags[:-1], "--model.num_steps=3"]
    elif what == "version":
        order = {"call": "other_version"}
    digest = {"DIGEST": "other" if what == "data set" else "same"}
    group = [
        workers.one(flags, config_of(jobs, 0) | {"DIGEST": "same"}),
        workers.one(other, config_of(jobs, 1) | digest, **order),
    ]
    assert [worker.wait() for worker in group] == [1, 1]
    for worker in group:
        line = worker.text.splitlines()[-1]
        assert line.startswith(f"error: worker 1 (localhost:{ports[1]}) has another {what} than")
        assert message in line and "Traceback" not in worker.text


def test_a_malformed_tf_config_is_one_line(train, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "[]")
    with pytest.raises(
        UserError, match="TF_CONFIG=.* does not describe workers.* Such as"
    ) as error:
        train()
    assert "\n" not in str(error.value)


def test_what_several_workers_cannot_do_is_refused(train, config, monkeypatch, capsys):
    port = listener.free_port()
    jobs = {"worker": [f"127.0.0.1:{port}", "127.0.0.1:1"]}
    monkeypatch.setenv("TF_CONFIG", config_of(jobs, 0)["TF_CONFIG"])
    with pytest.raises(UserError, match="--debug"):
        train(debug=True)
    with pytest.raises(UserError, match=r"model.batch_size=15 is not a multiple of 2 workers"):
        train(keys={"model.batch_size": 15})
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        with pytest.raises(SystemExit) as ended:
            train(keys={"model.batch_size": 16})
    assert ended.value.code == cluster.EXIT_PORT
    line = f"error: TF_CONFIG: another program has the port of 127.0.0.1:{port}; name a free one.\n"
    assert capsys.readouterr().err == line


def test_a_worker_whose_chief_does_not_come_ends(train, monkeypatch, capsys):
    jobs = {"worker": [f"127.0.0.1:{listener.free_port()}", f"127.0.0.1:{listener.free_port()}"]}
    monkeypatch.setenv("TF_CONFIG", config_of(jobs, 1)["TF_CONFIG"])
    with pytest.raises(SystemExit) as ended:
        train(keys={"trainer.cluster_timeout": 1})
    assert ended.value.code == cluster.EXIT_LOST
    assert f"the chief ({jobs['worker'][0]}) did not answer in 1 s" in capsys.readouterr().err
