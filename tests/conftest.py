"""What all tests share: a quiet TensorFlow, and running the project's programs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import hypothesis
import pytest

from trainer import quiet

quiet.import_tensorflow()

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "trainer"))  # the toy models

# The same examples in every run, and no time limit on a busy machine: a test fails for a reason.
hypothesis.settings.register_profile("prototrain", derandomize=True, deadline=None)
hypothesis.settings.load_profile("prototrain")


# A test run under nohup, or in the background of a script, ignores these, and so would the programs
# that it starts. Not by `preexec_fn`: libraries that a test loaded, such as gRPC, survive no fork.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


class Program:
    """Runs `python -m <module>` in a folder of its own, with the toy models importable."""

    def __init__(self, folder):
        self.folder = folder
        path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "trainer")))
        self._environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "100"}

    def start(self, *arguments, **options):
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self._environment,
            text=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )

    def __call__(self, *arguments, text=None):
        """Returns (exit code, stdout, stderr); `text` is typed into it."""
        process = self.start(*arguments, **({"stdin": subprocess.PIPE} if text else {}))
        out, err = process.communicate(text, timeout=300)
        return process.returncode, out, err

    def interrupt(self, when, *arguments, by=signal.SIGTERM):
        """Starts a program and sends a signal once `when()` holds; returns as a call does."""
        process = self.start(*arguments)
        try:
            while not when() and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(by)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, out, err


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


@pytest.fixture(scope="session")
def helps(tmp_path_factory):
    """{verb: {'help', 'helpfull' or the name of a model: what `prototrain VERB` prints then}}."""
    run = Program(tmp_path_factory.mktemp("helps"))
    code, out, err = run("helps")
    assert code == 0, err
    return json.loads(out)
