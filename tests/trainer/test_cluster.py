"""Several workers of one training, in processes of their own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import toy
from runs import assert_equal_runs, weights

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
        return [
            self.one(arguments, config_of(jobs, task), **order) for task in range(count)
        ]

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
