"""Help: essentials first, the rest under headings."""

import pathlib
import re
import shlex
import shutil

from absl import flags

from trainer import helptext
from trainer.config import Config

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("trainer", "metriclearn", "retrieval", "models")


def rendered(wanted, **keys):
    values = flags.FlagValues()
    flags.DEFINE_string("model", "mine", "Model.", values, module_name="mine.program")
    flags.DEFINE_bool("verbose", False, "A library's flag.", values, module_name="absl.logging")
    config = Config(keys)
    config.declare("dataset.name", "shop", "Which data.", choices=("shop", "web"))
    config.declare("mine.depth", 3, "How deep.", within="[1, 9]")
    return helptext.render(values, config, wanted)


def section(text, heading):
    return text.split(f"\n{heading}:\n")[1].split("\n\n")[0]


def test_short_help_explains_the_essentials_and_lists_the_rest():
    text = rendered("help")
    essential = section(text, "Essential keys")
    assert "--dataset.name: [str] Which data. One of: shop, web. (default: shop)" in essential
    assert section(text, "mine") == "  --mine.depth=3"
    assert "verbose" not in text and "How deep" not in text
    assert "  --model: Model." in section(text, "Flags of this program")


def test_full_help_explains_everything_with_ranges_and_libraries_last():
    text = rendered("helpfull")
    assert section(text, "mine") == "  --mine.depth: [int] How deep. In [1, 9]. (default: 3)"
    assert "--verbose: A library's flag." in section(text, "Flags of libraries")


def test_the_learning_rate_of_the_schedule_in_use_is_essential():
    for method in ("constant", "exp", "cosine"):
        text = rendered("help", **{"model.lr_schedule.method": method})
        essential = section(text, "Essential keys")
        assert f"model.lr_schedule.{method}.value" in essential
        assert essential.count(".value:") == 1


def test_headings_are_prefixes():
    names = ("model.x", "model.optimizer.adam.x", "a.b.c.d.x")
    assert [helptext._heading(name) for name in names] == ["model", "model.optimizer", "a.b"]


def test_printed_commands_are_spelled_as_the_program_was_started(monkeypatch):
    name = "a 'quoted'\n[1] $x `y`"
    for started_as, program in (("", ["-m", "retrieval.eval"]), ("prototrain train", ["eval"])):
        monkeypatch.setattr(helptext, "started_as", started_as)
        words = shlex.split(helptext.command("eval", "retrieval.eval", f"--model={name}"))
        assert words[1:] == [*program, f"--model={name}"]
        assert shutil.which(words[0]) or words[0] == "prototrain"


def test_no_other_code_prints_a_command_of_python():
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in found:
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
        lines = [line for line in code.splitlines() if re.search(r"python -m \w+\.\w", line)]
        assert not lines, (path, lines)
