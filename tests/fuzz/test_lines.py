"""Random command lines are understood or refused in one line; `programs` also runs them."""

import os
import pathlib
import sys

import pytest
import toy
from absl import flags
from absl.testing import flagsaver

from trainer import cli, commandline, program, quiet

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lines
from damage import example, numbers

MODELS = ("train", "export", "inspect", "sweep")


@pytest.fixture
def parsed(monkeypatch, capsys):
    """Parses a command line of `prototrain`, all but running it: (exit code, stdout, stderr)."""
    without_model = program.run_without_model

    def parse(main, argv=None, stopped=None, flag_values=flags.FLAGS, **options):
        def work(argv):
            commandline.from_flags(argv, flag_values, **options)

        program.guarded(work, argv, stopped)

    monkeypatch.setattr(program, "run", parse)
    monkeypatch.setattr(quiet, "_filtering", True)  # a process per line would take most of the time
    monkeypatch.setattr(
        program, "run_without_model", lambda main, *rest, **options: without_model(
            lambda *arguments: 0, *rest, **options
        ),
    )  # fmt: skip

    def run(words):
        monkeypatch.setattr(sys, "argv", ["prototrain", *words])
        values, known = flagsaver.save_flag_values(), set(flags.FLAGS)
        streams, path = (sys.stdout, sys.stderr), list(sys.path)
        keys, given = dict(toy.config._values), toy.config.given
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code or 0, *capsys.readouterr()
        finally:
            sys.stdout, sys.stderr = streams
            sys.path[:] = path
            toy.config._values, toy.config.given = keys, given
            for name in set(flags.FLAGS) - known:
                if name in flags.FLAGS:  # its short name removed it
                    delattr(flags.FLAGS, name)
            flagsaver.restore_flag_values(values)
            flags.FLAGS.unparse_flags()

    return run


def test_command_lines(parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines.write_inputs(tmp_path)
    flags_of = {}
    for verb in cli.VERBS:
        model = ["--model=toy_served"] if verb in MODELS else []
        code, out, err = parsed([verb, *model, "--helpfull"])
        assert code == 0, err
        flags_of[verb] = lines.names(out)
        assert len(flags_of[verb]) >= (60 if model else verb != "diff"), verb
    codes = set()
    for number in numbers(10):
        words, made = lines.line(number, flags_of)
        for name, data in made.items():
            pathlib.Path(name).write_bytes(data)
        with example("line", number):
            code, _, err = parsed(words)
            errors = [each for each in err.splitlines() if each.startswith("error:")]
            assert "Traceback" not in err and code in (0, 1), (words, err)
            assert len(errors) == code, (words, err)
            codes.add(code)
    assert codes == {0, 1} and os.listdir(tmp_path)
