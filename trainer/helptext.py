"""What `--help` and `--helpfull` print: the essentials first, the rest under headings."""

import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Collection
from typing import Any

from absl import flags

FLAGS = ("help", "helpfull", "helpshort", "?")

MANY = 12  # number of the program's flags, in the order of definition, that `--help` explains

# How the running program was started, if not by `python -m`; `trainer.cli` sets it.
started_as = ""


def command(verb: str, module: str, *arguments: str) -> str:
    """Returns a command line to print, quoted for a shell: `prototrain VERB …` or `python -m …`.

    Args:
      verb, module: the two names of the program; used is the kind by which the running program was
        started.
      arguments: its arguments.
    """
    words = ["prototrain", verb] if started_as else [_python(), "-m", module]
    return shlex.join([*words, *arguments])


def running() -> str:
    """Returns the name of the module that runs as a program, '' in a script or a notebook."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else ""


def _python():
    """`python` if a shell would find the running interpreter by it, else its path."""
    found, here = shutil.which("python"), sys.executable  # .venv/bin/python and …/python3.11
    same = found and os.path.dirname(found) == os.path.dirname(here)
    return "python" if same and os.path.samefile(found, here) else here


# Flags of these packages are not ours: `--helpfull` lists them last.
LIBRARIES = ("absl", "tensorflow", "tensorboard", "keras", "optuna", "etils")


class Wanted(Exception):
    """Help was requested; the exception's text is the help."""


def render(
    flag_values: flags.FlagValues, config: Any, wanted: str, arguments: Collection[str] = ()
) -> str:
    """Returns the help of the running program.

    Args:
      flag_values: the program's flags, all defined.
      config: the `Config` whose keys are flags too; None for a program without a model.
      wanted: 'helpfull' explains every flag; anything else only the essential ones.
      arguments: names of the positional arguments.
    """
    full = wanted == "helpfull"
    program, doc = _program()
    needs_model = ["--model=MODULE"] if config is not None else []
    lines = [doc, "", " ".join(["Usage:", program, *arguments, *needs_model, "[--flag=value …]"])]
    keys = [config.key(name) for name in config] if config is not None else []
    names = {key.name for key in keys}
    own: list[flags.Flag] = []
    others: list[flags.Flag] = []
    for module, defined in sorted(flag_values.flags_by_module_dict().items()):
        listed = others if module.split(".")[0] in LIBRARIES else own
        listed += [f for f in defined if f.name not in names and f.name not in FLAGS]
    shown = own if full else own[:MANY]
    lines += _explained("Flags of this program", map(_of_flag, shown))
    if own[len(shown) :]:
        lines += ["", "More flags of this program:"]
        defaults = [(flag, (flag.default_as_str or "").strip("'")) for flag in own[len(shown) :]]
        lines += [f"  --{flag.name}={default}" for flag, default in defaults]
    first = [key for key in keys if key.essential and config.holds(key.needs)]
    lines += _explained("Essential keys", (_of_key(key, config) for key in first))
    groups: dict[str, list[Any]] = {}
    for key in keys:
        if key not in first:
            groups.setdefault(_heading(key.name), []).append(key)
    for heading, group in groups.items():
        if full:
            lines += _explained(heading, (_of_key(key, config) for key in group))
        else:
            lines += ["", f"{heading}:"]
            lines += [f"  --{key.name}={_value(key, config)}" for key in group]
    if full:
        lines += _explained("Flags of libraries", map(_of_flag, others))
    else:
        lines += ["", "--helpfull explains every flag. --flagfile=F reads flags from a file."]
    if config is not None and flag_values["model"].value is None:
        lines += ["With --model=MODULE, the keys of the model are listed too."]
    return "\n".join(lines)


def _program():
    """Returns how the running program is started, and its docstring."""
    program = f"python -m {running()}" if running() else os.path.basename(sys.argv[0])
    doc = (sys.modules["__main__"].__doc__ or "").strip()
    return (started_as, doc.replace(program, started_as)) if started_as else (program, doc)


def _heading(name):
    """`model.batch_size` belongs to `model`, `model.optimizer.adam.beta1` to `model.optimizer`."""
    return ".".join(name.split(".")[:-1][:2])


def _value(key, config):
    value = config.to_dict()[key.name]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _of_key(key, config):
    choices = f" One of: {', '.join(c or repr(c) for c in key.choices)}." if key.choices else ""
    within = f" In {key.within}." if key.within else ""
    value = _value(key, config)
    default = f" (default: {value})" if value != "" else ""
    return f"--{key.name}: [{key.type}] {key.doc}{choices}{within}{default}"


def _of_flag(flag):
    name = f"-{flag.short_name}, --{flag.name}" if flag.short_name else f"--{flag.name}"
    default = f" (default: {flag.default_as_str})" if flag.default not in (None, [], False) else ""
    return f"{name}: {flag.help}{default}"


def _explained(heading, texts):
    width = min(shutil.get_terminal_size().columns, 100)
    wrapped = [
        textwrap.fill(
            " ".join(text.split()), width, initial_indent="  ", subsequent_indent="      ",
            break_long_words=False, break_on_hyphens=False,
        )
        for text in texts
    ]  # fmt: skip
    return ["", f"{heading}:", *wrapped] if wrapped else []
