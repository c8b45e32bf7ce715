"""The trainer's command line."""

import os
import pathlib

import pytest


def test_debug_opens_ipython_with_the_names_it_promises(program):
    typed = "print([type(x).__name__ for x in (sess, towers, datasets, config)])\n"
    code, out, err = program("trainer.main", "--model=toy", "--debug", text=typed)
    assert code == 0, err
    assert "Available names: sess, model, towers, datasets, config" in out
    assert "['Session', 'list', 'dict', 'Config']" in out


def test_debug_writes_nothing_to_a_finished_run(program, train, tmp_path):
    folder = train()

    def contents():
        files = (p for p in pathlib.Path(folder).rglob("*") if p.is_file() and p.name != ".lock")
        return {path: path.read_bytes() for path in files}

    before = contents()
    arguments = ["trainer.main", "--model=toy", "--debug", "--toy.dropout=0.5"]
    code, out, err = program(*arguments, text="\n")
    assert code == 0, err
    code, out, err = program("trainer.main", "--model=toy", "--check_towers", "--toy.dropout=0.0")
    assert code == 0, err
    assert contents() == before
    code, out, err = program("trainer.main", "--model=toy", "--debug", "--fresh", "--yes")
    assert code == 1 and "--debug" in err and contents() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model=toy", "--fresh", "yes"], "Unexpected argument 'yes': flags are --name=value"),
        (["--model=toy", "--trainer=json"], "--trainer=json: the module has no train()"),
        (["--model=toy", "--replay_step=3"], "--replay_step needs --debug"),
        (["--model=../mine.py"], "--model=../mine.py is a path; give the module's name"),
    ],
)
def test_mistakes_are_one_line(program, arguments, message):
    code, out, err = program("trainer.main", *arguments)
    assert code == 1 and message in err and err.count("\n") == 1


def test_a_bug_is_a_traceback_and_a_line_that_asks_for_a_report(program):
    (program.folder / "broken.py").write_text(
        "import toy\nfrom toy import *\nconfig = toy.config\n"
        "def build(inputs, train_phase): return 1 / 0\n"
    )
    code, out, err = program("trainer.main", "--model=broken")
    assert code == 1 and "ZeroDivisionError" in err
    last = err.splitlines()[-1]
    assert last.startswith("This is a bug") and "please report" in last and "Python 3" in last


@pytest.mark.parametrize("stream", [1, 2], ids=["stdout", "stderr"])
def test_a_closed_stream_does_not_stop_training(program, stream):
    process = program.start("trainer.main", "--model=toy", preexec_fn=lambda: os.close(stream))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and "Traceback" not in out + err
    assert (program.folder / "experiments/toy/checkpoint/model-20.index").exists()


def test_a_reader_that_leaves_does_not_stop_training(program):
    process = program.start("trainer.main", "--model=toy", "--model.num_steps=200")
    assert "starting" in process.stdout.readline()
    process.stdout.close()  # as `head -1` does
    err = process.stderr.read()
    assert process.wait(100) == 0 and err == ""
    assert (program.folder / "experiments/toy/checkpoint/model-200.index").exists()


def test_an_encoding_without_the_characters_does_not_stop_training(program):
    program._environment = program._environment | {"PYTHONIOENCODING": "ascii"}
    code, out, err = program("trainer.main", "--model=toy", "--trainer.experiment_name=kühl")
    assert code == 0 and "k\\xfchl" in out and err == ""
