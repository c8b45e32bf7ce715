"""A few kills and command lines of real programs; more of them every night.

PROTOTRAIN_KILLS=500 PROTOTRAIN_LINES=2000 pytest -n0 tests/test_forks.py
"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_killed_programs_leave_old_or_new_and_random_command_lines_end_in_one_line(tmp_path):
    kills, lines = (os.environ.get(f"PROTOTRAIN_{name}", "") for name in ("KILLS", "LINES"))
    some = [] if kills else ["--kinds=index"]  # the fastest
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "forks.py", *some, f"--kills={kills or 6}",
         f"--lines={lines or 10}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "command lines:" in done.stdout and "index:" in done.stdout
