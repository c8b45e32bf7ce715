"""The command line: a model by name, a flag per key, flag files, and errors that name the flag."""

import contextlib
import difflib
import functools
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType
from typing import Any

from absl import flags

from trainer import config as config_lib
from trainer import helptext, quiet, schema
from trainer.config import Config, UserError, did_you_mean


def load_model(name: str) -> Any:
    """Returns the model module of a name, after checking `config`, `datasets` and `build`.

    Raises:
      UserError: there is no such module, or it is not a model.
    """
    quiet.import_tensorflow()  # before the module imports it, with its banner
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = load_module(name, "--model")
    missing = [part for part in ("config", "datasets", "build") if not hasattr(module, part)]
    if missing:
        raise UserError(
            f"--model={name}: {module.__name__} lacks {' and '.join(missing)}. A model is a module "
            "with config, datasets() and build(inputs, train_phase); see models/simple."
        )
    if not isinstance(module.config, Config):
        raise UserError(f"--model={name}: config is a {type(module.config).__name__}, not a Config")
    return module


def load_module(name: str, flag: str) -> ModuleType:
    """Imports the module that a flag names.

    Args:
      name: dotted name of the module.
      flag: the flag, such as '--model', for messages.

    Raises:
      UserError: there is no such module, the name is a path, or the file does not parse.
    """
    if "/" in name or os.sep in name or name.endswith(".py"):
        path = re.sub(r"(/__init__)?\.py$", "", os.path.normpath(os.path.expanduser(name)))
        folder, module = os.path.split(path)
        if not os.path.isabs(path) and ".." not in path.split(os.sep):
            folder, module = "", path.replace(os.sep, ".")
        where = f", in the folder {folder}" if folder else ""
        raise UserError(f"{flag}={name} is a path; give the module's name: {flag}={module}{where}.")
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise UserError(f"{flag}={name!r} is not a module name; write it as models.simple.")
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except ModuleNotFoundError as error:
        # Only a missing `name` is the user's typo; a missing import inside the module is a bug.
        if not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        parent = name.rpartition(".")[0]
        known = ["models.simple", "models.ranker"]
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            # In an editable install, some entries of the path are not folders.
            folders = filter(os.path.isdir, importlib.import_module(parent).__path__)
            known += [f"{parent}.{f.split('.')[0]}" for d in folders for f in os.listdir(d)]
        raise UserError(
            f"{flag}={name}: no module named {error.name!r}.{did_you_mean(name, known)} "
            + "; ".join(hidden_packages())
        ) from None


class _Parser(flags.ArgumentParser):
    """Parses the text of a flag as a value of its key."""

    def __init__(self, key: schema.Key) -> None:
        self.key = key
        self.syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        return config_lib.from_text(self.key, argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return self.key.type


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return config_lib.to_text(value)


class _PathParser(flags.ArgumentParser):
    """Reads a path; a leading `~` is the home folder."""

    syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        return os.path.expanduser(argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return "string"


def define_path(
    name: str, default: str | None, doc: str, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines a flag for a file or folder; a leading `~` is expanded."""
    module = sys._getframe(1).f_globals["__name__"]
    flags.DEFINE(
        _PathParser(), name, default, doc, flag_values, flags.ArgumentSerializer(),
        module_name=sys.argv[0] if module == "__main__" else module,  # as absl names it
    )  # fmt: skip


def _define_float(
    name, default, doc, flag_values, within="", lower_bound=-math.inf, upper_bound=math.inf
):
    """Defines a flag for a decimal number in a range such as '(0, 1]'; NaN is not allowed."""
    within = within or f"[{lower_bound}, {upper_bound}]"
    key = schema.Key(name, "float", default, doc, within=within)
    help_text = doc if within == "[-inf, inf]" else f"{doc} In {within}."
    module = sys._getframe(1).f_globals["__name__"]
    flags.DEFINE(
        _Parser(key), name, default, help_text, flag_values, _Serializer(),
        module_name=sys.argv[0] if module == "__main__" else module,
    )  # fmt: skip


def definers(values: flags.FlagValues, *kinds: str) -> list[Callable[..., Any]]:
    """Returns one function per kind that defines a flag in `values`.

    Args:
      values: the flags of one program, so that another program can run in the same process.
      kinds: 'path', 'float' (which takes `within`, a range such as '(0, 1]'), or the end of an absl
        function's name, such as 'integer'.
    """
    functions: dict[str, Callable[..., Any]] = {"path": define_path, "float": _define_float}
    return [
        functools.partial(
            functions.get(kind) or getattr(flags, f"DEFINE_{kind}"), flag_values=values
        )
        for kind in kinds
    ]


def define_flags(
    config: Config, module_name: str, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines one absl flag per key, with the key's name and type."""
    for name in config:
        key = config.key(name)
        default = config_lib.plain(config._values[name])
        if key.type == "bool":
            flag: flags.Flag = flags.BooleanFlag(name, default, key.doc)
        else:
            default = default if default not in (None, []) else None
            flag = flags.Flag(_Parser(key), _Serializer(), name, default, key.doc)
        flags.DEFINE_flag(flag, flag_values, module_name=module_name)
    define_allow_code(flag_values)


def define_allow_code(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines `--allow_code`; programs with a model have it already."""
    if "allow_code" not in flag_values:
        flags.DEFINE_bool(
            "allow_code",
            False,
            "Import functions that an experiment's config.json names, if you trust its origin.",
            flag_values,
            module_name=__name__,
        )


def from_flags(
    argv: list[str],
    flag_values: flags.FlagValues = flags.FLAGS,
    model_needed: bool = True,
    renamed: Mapping[str, str] = {},
) -> tuple[Any, set[str], list[str]]:
    """Parses a command line in two stages: `--model`, then every key of that model.

    Args:
      argv: the command line, program name first. `--model` must have been defined.
      flag_values: the flags.
      model_needed: whether `--model` must be given.
      renamed: see `run`.

    Returns:
      (model module with the flags' values in its config or None without one, the names of the keys
      that were set, the remaining positional arguments).

    Raises:
      UserError: any mistake in the command line; the error names the flag.
      HelpWanted: `--help` or `--helpfull` was given.
    """
    from trainer import presets  # which imports this module

    argv, wanted = without_help(expand_flag_files(argv))
    try:
        flag_values(argv, known_only=True)
        if flag_values["model"].value is None:
            if wanted:
                raise helptext.Wanted(helptext.render(flag_values, Config(), wanted))
            if model_needed:
                raise UserError("Give a model: --model=models.simple (a module name).")
            flag_values.unparse_flags()
            return None, set(), flag_values(argv)[1:]
        model = load_model(flag_values["model"].value)
        adopted = _adopt_flags(flag_values)
        preset = flag_values["preset"].value if "preset" in flag_values else None
        define_flags(model.config, model.__name__, flag_values)
        if wanted:
            text = helptext.render(flag_values, model.config, wanted)
            listed = presets.listing(model) if "preset" in flag_values else []
            raise helptext.Wanted("\n".join([text, *listed]))
        if preset:  # before the command line's own flags, which override it
            argv = [argv[0], *presets.flags_of(model, preset), *argv[1:]]
        flag_values.unparse_flags()
        rest = flag_values(argv)
        flags.FLAGS.mark_as_parsed()
    except flags.Error as error:
        raise flag_error(error, renamed, flag_values) from None
    given = {name for name in model.config if flag_values[name].present}
    for name in given:
        model.config[name] = flag_values[name].value
    model.config.given = given
    model.config.own_flags = {
        flag.name: str(flag.value) if flag.boolean else flag.serialize().partition("=")[2]
        for flag in adopted
        if flag.present
    }
    model.config.code_allowed = flag_values["allow_code"].value
    return model, given, rest[1:]


def _adopt_flags(flag_values):
    """Adds flags that a user's module defines with absl to this program; returns them."""
    adopted = []
    if flag_values is flags.FLAGS:
        return adopted
    for name in flags.FLAGS:
        flag, module = flags.FLAGS[name], flags.FLAGS.find_module_defining_flag(name, "")
        if name != flag.name:  # its short name
            continue
        if name not in flag_values:
            flag_values[name] = flag
            flag_values.register_flag_by_module(module, flag)
            adopted.append(flag)
        elif flag_values[name] is not flag and module.split(".")[0] not in helptext.LIBRARIES:
            raise UserError(f"{module} defines the flag --{name}, which this program has already.")
    return adopted


def no_arguments(rest: Collection[str]) -> None:
    """Raises `UserError` if there are positional arguments, such as a flag without its dashes."""
    for word in rest:
        raise UserError(f"Unexpected argument {word!r}: flags are --name=value.")


def refuse_idle(options: flags.FlagValues, names: Iterable[str], why: str) -> None:
    """Raises `UserError` if one of these flags, which have no effect, was given."""
    for name in names:
        if options[name].present:
            raise UserError(f"--{name} has no effect: {why}")


def expand_flag_files(argv: list[str], seen: tuple[str, ...] = ()) -> list[str]:
    """Returns a command line with each `--flagfile=F` replaced by the flags in that UTF-8 file.

    A file has one flag per line; empty lines and lines that begin with `#` or `//` are skipped. It
    may name further files. A byte-order mark is skipped too, unlike in absl's reader.

    Raises:
      UserError: a file cannot be read, or a flag's name is too long; the message names it.
    """
    expanded, left = [], list(argv)
    while left:
        word = left.pop(0)
        name, _, path = word.lstrip("-").partition("=")
        if word.startswith("-") and len(name) > 200:  # too long for absl
            raise UserError(f"{word[:40]}…: there is no flag with such a long name.")
        if not word.startswith("-") or name != "flagfile":
            expanded.append(word)
            continue
        path = os.path.expanduser(path or (left.pop(0) if left else ""))
        if path in seen:
            continue
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise UserError(f"--flagfile={path}: cannot be read: it is a pipe or a device.")
        try:
            with open(path, encoding="utf-8-sig") as text:
                lines = [line.strip() for line in text]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--flagfile={path}: cannot be read: {reason}.") from None
        lines = [line for line in lines if line and not line.startswith(("#", "//"))]
        expanded += expand_flag_files(lines, (*seen, path))
    return expanded


def without_help(argv: list[str]) -> tuple[list[str], str]:
    """Returns the command line without help flags, and the help flag that was given or ''."""
    helps = [a for a in argv[1:] if a.lstrip("-") in helptext.FLAGS and a.startswith("-")]
    return [a for a in argv if a not in helps], helps[-1].lstrip("-") if helps else ""


def flag_error(error, renamed, flag_values):
    old = getattr(error, "flagname", None)
    now = renamed.get(old) or renamed.get(str(old).removeprefix("no"))
    line = f"--{old} is now {now}" if now else one_line(error)
    if isinstance(error, flags.UnrecognizedFlagError) and not now and "Did you mean" not in line:
        line += _by_last_parts(old, flag_values)
    return UserError(line)


def _by_last_parts(name, flag_values):
    """`. Did you mean …?` with dotted flags whose last parts are similar to a name."""
    full = {}
    for known in flag_values:
        parts = known.split(".")
        for first in range(len(parts)):
            full.setdefault(".".join(parts[first:]), []).append(f"--{known}")
    near = difflib.get_close_matches(name.removeprefix("no") or name, full, n=3, cutoff=0.7)
    found = list(dict.fromkeys(known for last in near for known in full[last]))[:3]
    return f". Did you mean {' or '.join(found)}?" if found else ""


def hidden_packages() -> list[str]:
    """Returns a line for each of our packages that a file of the user hides.

    `python -m` searches the current folder first, so that a user's retrieval.py replaces ours.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    remedy = "rename it, or run `prototrain` instead of `python -m`"
    lines = []
    for name in ("metriclearn", "retrieval", "models"):
        file: str | None = getattr(sys.modules.get(name), "__file__", None)
        if file and os.path.abspath(file) != os.path.join(home, name, "__init__.py"):
            # Our models/ has no __init__.py: both folders are searched unless the user's has one.
            how = "remove this file" if name == "models" else remedy
            lines.append(f"{file} hides prototrain's package {name}: {how}")
    return lines


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line."""
    return " ".join(str(error).split()).replace(" ?", "?")
