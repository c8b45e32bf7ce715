"""Programs: one-line errors, exit codes, bugs that ask for a report."""

import pytest

GUARDED = """
import sys
from absl import flags
from trainer import config, program
def main():
    {body}
program.run_without_model(main, stopped="stopped: nothing was written")
"""


@pytest.mark.parametrize(
    "body, code, message",
    [
        ("raise config.UserError('a\\n  b')", 1, "error: a b\n"),
        ("open('missing.csv')", 1, "error: missing.csv: No such file or directory\n"),
        ("open('.')", 1, "error: .: Is a directory\n"),
        ("raise MemoryError", 1, "error: out of memory\n"),
        ("raise KeyboardInterrupt", 130, "stopped: nothing was written\n"),
        ("return 3", 3, ""),
        ("print('\\udcff')", 0, ""),
    ],
)
def test_what_a_user_can_fix_is_one_line(program, body, code, message):
    (program.folder / "guarded.py").write_text(GUARDED.replace("{body}", body))
    found, out, err = program("guarded")
    assert (found, err) == (code, message)


@pytest.mark.parametrize("body", ["1 / 0", "raise OSError('no file')", "raise KeyError('x')"])
def test_a_bug_keeps_its_traceback_and_asks_for_a_report(program, body):
    (program.folder / "guarded.py").write_text(GUARDED.replace("{body}", body))
    code, out, err = program("guarded")
    assert code == 1 and err.startswith("Traceback") and body.split("(")[0] in err
    assert "please report the lines above" in err.splitlines()[-1]


def test_positional_arguments_are_refused(program):
    (program.folder / "guarded.py").write_text(GUARDED.replace("{body}", "pass"))
    assert program("guarded", "x") == (1, "", "error: unexpected argument 'x'\n")
    assert program("guarded", "--nope") == (1, "", "error: Unknown command line flag 'nope'\n")
