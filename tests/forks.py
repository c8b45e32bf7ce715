# ruff: noqa: E402, F401 (imports are what this module is for)
"""Programs in processes of their own that start at once: forked from this one.

    python tests/forks.py [--kills=500 [--kinds=train,index] [--seed=0]] [--lines=1000 [--first=0]]

This process has imported everything and run nothing, so that a fork is safe: it has one thread, and
TensorFlow starts others in the children. See `kills` and `fuzz/programs`.
"""

import os

# No threads may exist before a fork.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

import argparse
import contextlib
import fcntl
import functools
import pathlib
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS / name) for name in ("", "trainer", "models", "retrieval", "fuzz")]

from trainer import quiet

quiet.import_tensorflow()

import crash
import matplotlib.backends.backend_agg
import matplotlib.figure
import optuna

import metriclearn.datasets.pipeline
import retrieval.catalogue.index
import retrieval.embeddings.embedder
import retrieval.evaluation.suite
import retrieval.reports.comparison_page
import retrieval.reports.outputs
import retrieval.reports.search_page
import retrieval.reports.terminal
import trainer.check_towers
import trainer.loop
import trainer.sweep_report
from trainer import cli

SECONDS = 600  # that one run may take, on a busy machine, before it counts as hanging


def forked(task, kill_after=None, changes=None, limit=None):
    """Runs a function in a process of its own.

    Args:
      task: the function; what it raises ends its process with code 1 and a traceback.
      kill_after: seconds until SIGKILL.
      changes: number of changes of the file system before it kills itself.
      limit: bytes that a file may have.

    Returns:
      (exit code, negative for a signal; what it printed; seconds).
    """
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.dup2(writing, 1), os.dup2(writing, 2)
        code = 1
        try:
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
            if changes is not None:
                crash.kill_after(changes)
            code = task() or 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    os.close(writing)
    ended, _, _ = select.select(
        [handle := os.pidfd_open(pid)], [], [], SECONDS if kill_after is None else kill_after
    )
    os.close(handle)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not ended and kill_after is None:
        raise AssertionError(f"takes more than {SECONDS} s")
    seconds = time.monotonic() - start
    os.set_blocking(reading, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reading, 1 << 20):
            text += part
    os.close(reading)
    return os.waitstatus_to_exitcode(status), text.decode(errors="replace"), seconds


def program(arguments):
    """The function that runs `prototrain ARGUMENTS`."""

    def task():
        sys.argv = ["prototrain", *map(str, arguments)]
        if arguments[:1] == ["sweep"]:
            subprocess.Popen = functools.partial(started, subprocess.Popen)
        cli.main()

    return task


def started(real, command, **options):
    """Takes the place of subprocess.Popen: a trial of a sweep is forked, which imports nothing."""
    return Forked(command, options, real) if "trainer.main" in command else real(command, **options)


class Forked:
    """The process of a trial."""

    def __init__(self, command, options, real):
        self.returncode = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            crash.spare()
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            subprocess.Popen = real
            os.dup2(options["stdout"].fileno(), 1), os.dup2(options["stdout"].fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            from absl import flags

            flags.FLAGS.unparse_flags()
            for name in list(flags.FLAGS):
                delattr(flags.FLAGS, name)
            sys.argv = ["prototrain", "train", *command[command.index("trainer.main") + 1 :]]
            try:
                cli.main()
            except SystemExit as ended:
                os._exit(ended.code or 0)
            finally:
                os._exit(1)

    def poll(self):
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)


def main():
    threads = pathlib.Path("/proc/self/task").glob("*/comm")
    names = {path.read_text().strip() for path in threads}
    assert all(re.fullmatch(r"python[\d.]*|jemalloc_bg_thd", name) for name in names), names
    import kills
    import programs

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(kills.KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    top = tempfile.mkdtemp(prefix="forks-")
    # What TensorFlow leaves there after a kill goes with it.
    tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(top, "tmp")
    os.mkdir(tempfile.tempdir)
    failed = 0
    if options.kills:
        failed += kills.run(options.kills, options.kinds.split(","), options.seed, top)
    if options.lines:
        failed += programs.run(options.lines, options.first, top)
    if not failed:
        shutil.rmtree(top)
    return failed > 0


if __name__ == "__main__":
    sys.modules["forks"] = sys.modules["__main__"]
    sys.exit(main())
