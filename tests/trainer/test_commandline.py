"""The command line: flags of every key, mistakes, help, flag files."""

import math
import os

import pytest
from absl import flags

from trainer import commandline, schema
from trainer.config import Config, UserError


def parse(*arguments):
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "", short_name="m", flag_values=values)
    return commandline.from_flags(["program", *arguments], values)


def test_every_key_is_a_typed_flag(config):
    model, given, rest = parse(
        "--model=toy",
        "--model.batch_size=32",
        "--model.clip_gradients",
        "--model.lr_schedule.step.boundaries=1000,2000",
        "--model.lr_schedule.step.values=.1,.01,.001",
        "--model.trainable_variables.filter_fn=math:isnan",
        "--toy.dropout=0",
        "extra",
    )
    assert model.config["model.batch_size"] == 32
    assert model.config["model.clip_gradients"] is True
    assert model.config["model.lr_schedule.step.boundaries"] == [1000, 2000]
    assert model.config["model.lr_schedule.step.values"] == [0.1, 0.01, 0.001]
    assert model.config["toy.dropout"] == 0.0
    assert "model.batch_size" in given and "model.num_steps" not in given
    assert rest == ["extra"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model=toy", "--model.batch_sice=3"], r"batch_sice.*Did you mean: model.batch_size\?"),
        (["--model=toy", "--model.batch_size=many"], r"model.batch_size=many: takes int"),
        (["--model=toy", "--model.clip_gradients=perhaps"], "model.clip_gradients"),
        (["--model=toy", "--model.optimizer.method=adma"], "Did you mean 'adam'"),
        (["--model=toyy"], "no module named 'toyy'"),
        (["--model=models.simpel"], "Did you mean 'models.simple'"),
        (["--model=json"], "json lacks config and datasets and build"),
        ([], "Give a model"),
    ],
)
def test_mistakes_on_the_command_line(config, arguments, message):
    with pytest.raises(UserError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("learning_rat", "--model.learning_rate_factor"),
        ("batch_size", "--model.batch_size"),
        ("optimizer.metod", "--model.optimizer.method"),
        ("droput", "--toy.dropout"),
    ],
)
def test_a_flag_without_its_prefix_names_the_key(config, name, meant):
    with pytest.raises(UserError, match=f"'{name}'. Did you mean {meant}( or .*)?[?]$"):
        parse("--model=toy", f"--{name}=1")


WITH_FLAGS = """
from absl import flags
from toy import build, datasets
from trainer.config import Config
config = Config()
flags.DEFINE_integer("{name}", 4, "A flag of the model.", lower_bound=0)
"""


@pytest.fixture
def model_with_flags(tmp_path, monkeypatch):
    """Makes a model that defines a flag with absl; returns its name."""
    defined = set(flags.FLAGS)

    def make(name, flag):
        (tmp_path / f"{name}.py").write_text(WITH_FLAGS.replace("{name}", flag))
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for flag in set(flags.FLAGS) - defined:
        delattr(flags.FLAGS, flag)


def test_flags_that_a_model_defines_are_flags_of_every_program(model_with_flags):
    name = model_with_flags("has_flags", "side")
    # As if several programs ran in this process, none sees what another was given.
    for arguments, value in ((["--side=7"], 7), ([], 4), (["--side=9"], 9)):
        model, _, _ = parse(f"--model={name}", *arguments)
        assert flags.FLAGS.side == value
        given = {"side": str(value)} if arguments else {}
        assert model.config.own_flags == given  # the trials of a sweep get them
    with pytest.raises(UserError, match="side=-1: -1 is not a non-negative"):
        parse(f"--model={name}", "--side=-1")


def test_a_flag_of_a_model_does_not_hide_one_of_the_program(model_with_flags):
    name = model_with_flags("has_same_flag", "model.batch_size")
    with pytest.raises(UserError, match="'model.batch_size' is defined twice"):
        parse(f"--model={name}")


def test_full_help_explains_every_key(program):
    code, out, err = program("trainer.main", "--model=toy", "--helpfull")
    words = " ".join(out.split())
    for key in schema.KEYS.values():
        assert f"--{key.name}: [{key.type}] {key.doc}" in words, key.name
    assert "--toy.dropout: [float] Share of hidden units to drop. (default: 0.2)" in words
    assert code == 0 and "Traceback" not in err


def test_help_shows_the_essentials_first_and_the_rest_under_headings(program):
    code, out, err = program("trainer.main", "--model=toy", "--help")
    assert code == 0 and err == ""
    own, essential, rest = (
        out.index(text) for text in ("Flags of this program:", "Essential keys:", "\ntrainer:\n")
    )
    explained, listed = out[essential:rest], out[rest:]
    assert own < essential and 8 <= explained.count("\n  --") <= 14
    for name in ("trainer.experiment_name", "model.batch_size", "model.lr_schedule.constant.value"):
        assert f"--{name}: [" in explained
    assert "model.lr_schedule.cosine.value" not in explained
    for line in ("model.optimizer:\n", "  --model.optimizer.adam.beta1=0.9\n", "toy:\n"):
        assert line in listed
    assert "--fresh" in out[own:essential] and "absl" not in out and "verbosity" not in out
    code, out, err = program("trainer.main", "--help")
    assert code == 0 and "--model.batch_size: [" in out and "the keys of the model" in out


def test_help_of_a_program_without_a_model(program):
    code, out, err = program("trainer.diff", "--help")
    assert (code, err) == (0, "") and "Usage: python -m trainer.diff A B" in out


def test_a_mistake_is_one_line_and_exit_code_1(program):
    code, out, err = program("trainer.main", "--model=toy", "--model.batch_sice=3")
    assert code == 1
    assert (
        err
        == "error: Unknown command line flag 'model.batch_sice'. Did you mean: model.batch_size?\n"
    )


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "../mine.py",
            "--model=../mine.py is a path; give the module's name: --model=mine, in the",
        ),
        ("/data/mine.py", "--model=mine, in the folder /data"),
        ("models/simple", r"--model=models\.simple\."),
        ("models/simple/__init__.py", r"--model=models\.simple\."),
        ("mine.py", r"--model=mine\."),
        (".mine", "'.mine' is not a module name"),
        ("", "'' is not a module name"),
        ("a..b", "'a..b' is not a module name"),
        ("a b", "'a b' is not a module name"),
    ],
)
def test_a_model_is_a_module_name(name, message):
    with pytest.raises(UserError, match=message):
        commandline.load_module(name, "--model")


def test_a_module_that_does_not_parse_is_named(tmp_path, monkeypatch):
    (tmp_path / "unparsed.py").write_text("x = 1\nif x\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"unparsed\.py, line 2: expected ':'"):
        commandline.load_module("unparsed", "--model")


def test_flag_files_are_read_as_written(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "more.flags").write_text("--model.num_steps=7\n--flagfile=~/a.flags\n")
    text = "\ufeff--model=toy\n# a comment\n\n// another\n--flagfile=~/more.flags\n--toy.norm=batch"
    (tmp_path / "a.flags").write_text(text, encoding="utf-8")
    model, given, rest = parse("--flagfile=~/a.flags", "--model.batch_size=4")
    assert given == model.config.given == {"model.num_steps", "toy.norm", "model.batch_size"}
    assert config["model.num_steps"] == 7 and config["toy.norm"] == "batch" and rest == []
    assert parse("--flagfile", str(tmp_path / "a.flags"))[1] == {"model.num_steps", "toy.norm"}


@pytest.mark.parametrize("content", [None, b"--model=\xff\xfe", "folder", "pipe"])
def test_a_flag_file_that_cannot_be_read_is_named(config, tmp_path, content):
    path = tmp_path / "bad.flags"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"--flagfile=.*bad\.flags: cannot be read"):
        parse(f"--flagfile={path}")


def test_a_name_that_is_too_long_to_look_for_is_refused(config):
    with pytest.raises(UserError, match=r"--x{38}…: there is no flag with such a long name"):
        parse("--model=toy", f"--{'x' * 5000}=1")


def test_paths_are_expanded_and_stored_as_given(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    mine = Config({"model.weights_load_path": "~/runs/a"})
    mine.declare("dataset.manifest", "~/shop.csv", "List of images.", path=True)
    mine.declare("dataset.title", "~ shop", "Text.")
    assert mine["model.weights_load_path"] == "/home/me/runs/a"
    assert mine["dataset.manifest"] == "/home/me/shop.csv" and mine["dataset.title"] == "~ shop"
    assert mine.to_dict()["model.weights_load_path"] == "~/runs/a"
    values = flags.FlagValues()
    commandline.define_path("output", None, "Where to.", values)
    values(["program", "--output=~/out"])
    assert values.output == "/home/me/out"


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "nan", "inf", "x"])
def test_a_decimal_flag_has_a_range_and_is_never_nan(text):
    values = flags.FlagValues()
    (decimal,) = commandline.definers(values, "float")
    decimal("share", None, "A share.", within="(0, 1]")
    decimal("score", None, "Any number.")
    decimal("wait", 1.0, "Seconds.", lower_bound=0.5)
    values(["program", "--share=0.25", "--score=-inf", "--wait=0.5"])
    assert (values.share, values.score, values.wait) == (0.25, -math.inf, 0.5)
    with pytest.raises(flags.IllegalFlagValueError, match=r"--share"):
        values(["program", f"--share={text}"])
    for name, wrong in (("score", "nan"), ("wait", "0.4"), ("wait", "nan")):
        with pytest.raises(flags.IllegalFlagValueError, match=f"--{name}"):
            values(["program", f"--{name}={wrong}"])
