"""The first command of the README after the download: seconds from start to the report.

    python -m benchmarks.first_command [--rounds=1]

Runs what the README's line runs after `pip install`, in an empty folder. The recall is in the note;
a faster command must give the same.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

from benchmarks import figures, timing

ROOT = pathlib.Path(__file__).parent.parent


def commands():
    """The README's programs as lists of words, without virtual environment and installation."""
    line = re.search(r"<!-- train -->\n```\n(.*)\n```", (ROOT / "README.md").read_text())[1]
    parts = [shlex.split(part) for part in line.split("&&")]
    return [words[1:] for words in parts if words[0] == "prototrain"]


def measure(quick=False, rounds=1):
    found = []

    def once():
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}

            def run(words):
                program = [sys.executable, "-m", "trainer.cli", *words]
                subprocess.run(
                    program, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
                )

            seconds = [timing.seconds(lambda words=words: run(words)) for words in commands()]
            (report,) = pathlib.Path(folder).rglob("*-eval.json")
            found.append([*seconds, json.loads(report.read_text())["recall@k"]["1"]])
            return sum(seconds)

    (times,) = timing.alternate([once], rounds, warm=0)
    (row,) = figures.REACH["first_command"]
    train, evaluate, recall = found[-1]
    note = f"training {train:.0f} s, evaluation {evaluate:.0f} s, recall@1 {recall:.3f}"
    yield figures.figure(row, times, "s", note)


if __name__ == "__main__":
    figures.program(measure)
