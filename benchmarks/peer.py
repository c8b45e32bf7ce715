"""The peer of benchmarks and oracle vectors: pytorch-metric-learning in its own environment.

PyTorch is no dependency of this project. The first use makes a virtual environment in the user's
cache folder (about a minute and 500 MB); later uses find it there.

    python -m benchmarks.peer              # make it, print its interpreter
    python -m benchmarks.peer script.py    # run a script in it
"""

import os
import pathlib
import subprocess
import sys
import venv

REQUIREMENTS = ("torch==2.13.0", "pytorch-metric-learning==2.9.0", "numpy")


def folder():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "prototrain" / "peer"


def python():
    """Path of the peer's interpreter; makes the environment if it is missing or incomplete."""
    home = folder()
    interpreter = home / "bin" / "python"
    stamp = home / "requirements.txt"  # written last, so that an interrupted installation is redone
    wanted = "\n".join(REQUIREMENTS)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the peer's environment in {home}", file=sys.stderr)
        venv.create(home, clear=True, with_pip=True)
        subprocess.run(
            [interpreter, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
            check=True,
            stdout=sys.stderr,
        )
        stamp.write_text(wanted)
    return str(interpreter)


def run(arguments):
    """Standard output of the peer's interpreter run with `arguments`; its errors pass through."""
    done = subprocess.run([python(), *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(subprocess.run([python(), *sys.argv[1:]]).returncode)
    print(python())
