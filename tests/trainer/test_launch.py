"""Groups of workers that are started, and started again after a death."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import toy_global
from runs import assert_equal_runs

from trainer import cluster, engines, launch, meters
from trainer.config import UserError

# Stands in for the trainer, without TensorFlow: writes down how it was started, and ends as the
# file `codes` says: a line per start of a group, a code per worker.
TRAINER = """
import glob, json, os, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
task, folder = config["task"]["index"], sys.argv[1]
count = len([name for name in os.listdir(folder) if name.startswith(f"start-{task}-")])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75 if count else 0))
with open(f"{folder}/.new-{task}", "w") as file:
    json.dump([sys.argv[2:], dict(os.environ), os.getpid()], file)
os.rename(f"{folder}/.new-{task}", f"{folder}/start-{task}-{count}")
while len(glob.glob(f"{folder}/start-*-{count}")) < len(config["cluster"]["worker"]):
    time.sleep(0.01)
code = open(f"{folder}/codes").read().splitlines()[count].split()[task]
if code == "wait":
    time.sleep(60)
if code == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Launches the stand-in; returns (exit code, {(worker, start): [flags, environment, pid]})."""
    (tmp_path / "stand_in.py").write_text(TRAINER)
    command = [sys.executable, str(tmp_path / "stand_in.py"), str(tmp_path)]
    monkeypatch.setattr(engines, "trainer_command", lambda *flags: [*command, *flags])

    def run(*codes, **options):
        (tmp_path / "codes").write_text("\n".join(codes))
        code = launch.run(["--model=x", "--fresh"], len(codes[0].split()), **options)
        return code, {
            tuple(map(int, path.name.split("-")[1:])): json.loads(path.read_text())
            for path in tmp_path.glob("start-*")
        }

    run.folder = tmp_path
    return run


def test_a_group_starts_again_after_a_death_and_keeps_what_it_trained(launched, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    code, starts = launched("wait kill", "75 wait", "0 0", max_failures=2)
    assert code == 0 and sorted(starts) == [(t, n) for t in (0, 1) for n in (0, 1, 2)]
    assert starts[0, 0][0] == ["--model=x", "--fresh"]
    assert starts[0, 2][0] == ["--model=x", "--fresh", "--nofresh", "--nofresh"]
    configs = {key: json.loads(found[1]["TF_CONFIG"]) for key, found in starts.items()}
    for n in (0, 1, 2):
        assert configs[0, n]["cluster"] == configs[1, n]["cluster"]
        assert [configs[t, n]["task"] for t in (0, 1)] == [
            {"type": "worker", "index": t} for t in (0, 1)
        ]
        assert not {"OMP_NUM_THREADS", "TF_USE_LEGACY_KERAS"} & starts[0, n][1].keys()


def test_too_many_deaths_and_errors_end_it(launched):
    with pytest.raises(UserError, match="worker 1: killed by signal 9. The group failed 1 times"):
        launched("wait kill", max_failures=0)


def test_an_error_that_a_worker_reports_is_not_tried_again(launched):
    code, starts = launched("wait 1")
    assert code == 1 and sorted(starts) == [(0, 0), (1, 0)]


def test_a_taken_port_is_no_failure(launched):
    code, starts = launched("69 wait", "0 0", max_failures=0)
    assert code == 0 and len(starts) == 4
    assert (launch.EXIT_LOST, launch.EXIT_PORT) == (cluster.EXIT_LOST, cluster.EXIT_PORT)


def test_a_signal_reaches_every_worker_once_and_ends_it(launched):
    def stop():
        while len(list(launched.folder.glob("start-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    code, starts = launched("wait wait")
    assert code == 0 and len(starts) == 2


def test_mistakes_are_one_line(program):
    code, out, err = program("trainer.launch", "--workers=2")
    assert code == 1 and err.startswith("error: give the flags of train after --")


def test_ray_starts_a_group_again_after_the_death_of_an_actor(program, train):
    pytest.importorskip("ray")
    flags = ["--model.num_steps=30", "--trainer.checkpoint_save_interval=5"]
    folder = program.folder / "experiments" / "ray"
    process = program.start(
        *("trainer.launch", "--workers=2", "--engine=ray", "--", "--model=toy_global"),
        *("--trainer.experiment_name=ray", "--toy.seconds=0.1", *flags),
        stderr=subprocess.STDOUT,
    )
    try:
        while not any(line["step"] > 12 for line in meters.read_metrics(folder)):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        (chief,) = (p for p in trainers("ray") if p != 0 and is_chief(p))
        actor = int(pathlib.Path(f"/proc/{chief}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(actor, signal.SIGKILL)
        out, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0 and "Restarting all workers (1 of 3)" in out, out
    assert trainers("ray") == []
    keys = {"model.num_steps": 30, "trainer.checkpoint_save_interval": 5, "trainer.num_towers": 2}
    assert_equal_runs(str(folder), train("whole", toy_global, keys))


def trainers(name):
    """Numbers of the processes that train an experiment."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "trainer.main" in words and f"--trainer.experiment_name={name}" in words:
            found.append(int(path.parent.name))
    return found


def is_chief(pid):
    return '"index": 0}' in pathlib.Path(f"/proc/{pid}/environ").read_text()
