"""Signals stop the loop between two steps, with a checkpoint."""

import signal
import threading
import time

import pytest
from runs import assert_equal_runs

from trainer import checkpoints, meters, signals


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


@pytest.mark.parametrize("by", [signal.SIGHUP, signal.SIGQUIT])
def test_hangup_and_quit_save_too(program, by):
    folder = program.folder / "experiments" / "toy"
    started = lambda: bool(meters.read_metrics(folder))  # noqa: E731
    arguments = ["trainer.main", "--model=toy", "--model.num_steps=100000", "--toy.seconds=0.01"]
    code, out, err = program.interrupt(started, *arguments, by=by)
    assert code == 0 and f"({signal.Signals(by).name}): saved in" in out, err
    assert checkpoints.step_of(checkpoints.latest(folder / "checkpoint")) > 0


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
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert checkpoints.steps(folder / "checkpoint") == [3]


def test_an_ignored_signal_stays_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with signals.graceful() as stop_requested:
            signal.raise_signal(signal.SIGHUP)
            time.sleep(0.05)
            assert stop_requested() is None
            signal.raise_signal(signal.SIGTERM)
            while not stop_requested():
                time.sleep(0.01)
            assert stop_requested() == "SIGTERM"
            signal.raise_signal(signal.SIGHUP)  # a closing terminal is not a second signal
            time.sleep(0.05)
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_nothing_is_installed():
    found = []

    def work():
        with signals.graceful() as stop_requested:
            found.append((stop_requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, signal.getsignal(signal.SIGTERM))]
