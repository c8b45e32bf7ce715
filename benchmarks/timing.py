"""Timing of alternatives by turns. The peer's environment imports it too: NumPy only."""

import pathlib
import subprocess
import sys
import time

import numpy as np


def seconds(function, repeats=1):
    """Seconds per call. Repeat calls of a few milliseconds, or waking up is timed."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def alternate(functions, rounds, warm=1):
    """Calls functions by turns, so that other work on the machine slows all alike.

    Args:
      functions: each returns the seconds that it measured.
      rounds: turns that count.
      warm: turns before them, which compile and allocate.

    Returns:
      float64 [len(functions), rounds].
    """
    turns = [[function() for function in functions] for _ in range(warm + rounds)]
    return np.array(turns, np.float64)[warm:].T


def grown(function):
    """MiB that a call adds to the process's resident memory at its highest."""

    def status(key):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) / 1024

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def answer(step):
    """The worker's side: answers each number of steps on stdin with the seconds per step."""
    for line in sys.stdin:
        print(seconds(step, int(line)), flush=True)


class Worker:
    """A process of its own that runs steps of one kind when asked."""

    def __init__(self, command):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, request):
        """Sends one line and returns the number in the answer, for `answer` seconds per step.

        Raises:
          RuntimeError: the worker has stopped; its own message is on stderr.
        """
        try:
            print(request, file=self._process.stdin, flush=True)
            return float(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            command = " ".join(map(str, self._process.args))
            raise RuntimeError(f"the worker stopped: {command}") from None

    def close(self):
        """Ends the process. Closing its input alone would wait for a step to end."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
