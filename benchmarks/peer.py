"""The peer of benchmarks and oracle vectors: pytorch-metric-learning in its own environment.

PyTorch is no dependency of this project. The first use makes a virtual environment in the user's
cache folder (about a minute and 500 MB); later uses find it there.

    python -m benchmarks.peer              # make it, print its interpreter
    python -m benchmarks.peer script.py    # run a script in it

Where PyTorch is installed beside TensorFlow, that one is used.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import venv

MISSING = "PyTorch is not installed here: `python -m benchmarks.peer` installs it"
REQUIREMENTS = ("torch==2.13.0", "pytorch-metric-learning==2.9.0", "numpy")


def folder():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "prototrain" / "peer"


def installed(needs=("torch", "pytorch_metric_learning")):
    """Path of an interpreter that has the packages, or None: this one, or the environment's."""
    if all(map(importlib.util.find_spec, needs)):
        return sys.executable
    stamp = folder() / "requirements.txt"
    whole = stamp.exists() and stamp.read_text() == "\n".join(REQUIREMENTS)
    return str(folder() / "bin" / "python") if whole else None


def python():
    """Path of the peer's interpreter; makes the environment if it is missing or incomplete."""
    if found := installed():
        return found
    home = folder()
    interpreter = home / "bin" / "python"
    print(f"making the peer's environment in {home}", file=sys.stderr)
    venv.create(home, clear=True, with_pip=True)
    subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
        check=True,
        stdout=sys.stderr,
    )
    # Written last, so that an interrupted installation is redone.
    (home / "requirements.txt").write_text("\n".join(REQUIREMENTS))
    return str(interpreter)


def script(name):
    """Path of a script beside this file, as an argument of the peer's interpreter."""
    return str(pathlib.Path(__file__).with_name(name))


def run(arguments):
    """Standard output of the peer's interpreter run with `arguments`; its errors pass through."""
    done = subprocess.run([python(), *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(subprocess.run([python(), *sys.argv[1:]]).returncode)
    print(python())
