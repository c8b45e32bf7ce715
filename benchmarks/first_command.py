"""The first command of the README after the download: seconds from start to the report.

    python -m benchmarks.first_command [--quick] [--rounds=1]

Runs what the README's line runs after `pip install`, in an empty folder. The recall is in the note;
a faster command must give the same. --quick trains a quarter of the steps and adds the time of the
others at the rate that training reports.
"""

import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

from benchmarks import figures, timing

ROOT = pathlib.Path(__file__).parent.parent
STEPS, BATCH = 1200, 128  # of models.simple
RATE = r"(\d+) images/s"  # in the trainer's lines


def commands():
    """The README's programs as lists of words, without virtual environment and installation."""
    line = re.search(r"<!-- train -->\n```\n(.*)\n```", (ROOT / "README.md").read_text())[1]
    parts = [shlex.split(part) for part in line.split("&&")]
    return [words[1:] for words in parts if words[0] == "prototrain"]


def measure(quick=False, rounds=1):
    found = []

    def once():
        with tempfile.TemporaryDirectory() as folder:
            found[:] = _run(folder, STEPS // 4 if quick else STEPS)
        return sum(found[:3])

    (times,) = timing.alternate([once], rounds, warm=0)
    (row,) = figures.REACH["first_command"]
    train, rest, evaluate, recall = found
    note = f"training {train + rest:.0f} s, evaluation {evaluate:.0f} s"
    if quick:
        note += f"; three quarters of the training, {rest:.0f} s, are estimated"
    else:
        note += f", recall@1 {recall:.3f}"
    yield figures.figure(row, times, "s", note)


def _run(folder, count):
    """(seconds of training, of its remaining steps, of the evaluation; recall@1)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = []

    def run(words):
        done = subprocess.run(
            [sys.executable, "-m", "trainer.cli", *words],
            cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        said.append(done.stdout)

    train, evaluate = commands()
    if count < STEPS:
        train = [*train, f"--model.num_steps={count}"]
    seconds = [timing.seconds(lambda words=words: run(words)) for words in (train, evaluate)]
    rates = [int(rate) for rate in re.findall(RATE, said[0])]
    rest = (STEPS - count) * BATCH / statistics.median(rates) if count < STEPS else 0
    (report,) = pathlib.Path(folder).rglob("*-eval.json")
    return seconds[0], rest, seconds[1], json.loads(report.read_text())["recall@k"]["1"]


if __name__ == "__main__":
    figures.program(measure)
