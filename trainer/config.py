"""Configuration: flat dotted keys, declared once, the same in Python, as flags and on disk."""

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from trainer import helptext, quiet, schema

TYPES = ("bool", "int", "float", "str", "func", "list(int)", "list(float)", "list(str)")


class UserError(ValueError):
    """An error the user can fix; shown as one line, without a traceback."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean …?` with the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Runs something that must not stop the program: an error becomes a warning on stderr.

    Args:
      what: what is lost then, such as 'the plots'.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        print(f"warning: without {what} ({type(error).__name__}: {text})", file=sys.stderr)


@contextlib.contextmanager
def user_errors(place: str | None = None) -> Iterator[None]:
    """Turns a ValueError or an OSError into a `UserError`, around work on the user's files.

    Args:
      place: the file or folder to name where an OSError names none.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        what = error.filename or place or "a file"
        raise UserError(f"{what}: cannot be read or written: {error.strerror or error}") from error


class Config:
    """A dictionary of declared keys.

    `config[key]` returns the value; a key of type `func` gives the function, a path has its `~`
    expanded. Reading or setting an undeclared key raises `UserError`, and so does a value of
    another type or outside the key's range.

    Attributes:
      given: names of the keys that the command line set.
      own_flags: {name: text} of the flags that the model defines with absl and that were given.
      code_allowed: whether the command line has `--allow_code`.

    Args:
      values: {key: value} for keys of `trainer.schema`; a model declares its own with `declare`.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._keys = dict(schema.KEYS)
        self._values = {key.name: key.default for key in self._keys.values()}
        self.given: set[str] = set()
        self.own_flags: dict[str, str] = {}
        self.code_allowed = False
        self.update(values)

    def declare(
        self,
        key: str,
        default: Any,
        doc: str,
        type: str | None = None,
        choices: Collection[Any] = (),
        fixed: bool = False,
        *,
        within: str = "",
        path: bool = False,
        essential: bool | None = None,
        needs: str = "",
    ) -> None:
        """Adds a key of the model's own.

        Args:
          key: flat dotted name, such as `model.margin`.
          default: its value unless set.
          doc: one line that explains it in `--helpfull`.
          type: one of `TYPES`; taken from the default if absent.
          choices: allowed values, if only some are.
          fixed: a change makes a different run, so resuming with it is refused.
          within: the range of a number, or of a list's numbers, such as '[0, 1)' or '(0, inf)'.
          path: a file or folder; a leading `~` is expanded when the key is read.
          essential: `--help` lists the key first; by default only where the data are.
          needs: what must hold for the key to have an effect: 'model.xent', 'model.loss=proxy' or
            'model.loss!=proxy'.

        Raises:
          UserError: the key exists already, or the default does not fit its type or range.
        """
        if key in self._keys:
            raise UserError(f"Config key {key!r} is declared twice.")
        type = type or _type_of(key, default)
        if essential is None:
            essential = key in ("dataset.name", "dataset.base_path", "dataset.manifest")
        self._keys[key] = schema.Key(
            key, type, default, doc, tuple(choices), fixed, within, path, essential, needs
        )
        self.set_default(key, default)

    def key(self, name: str) -> schema.Key:
        """Returns the `schema.Key` of a declared name."""
        if name not in self._keys:
            raise UserError(
                f"No config key {name!r} is declared.{did_you_mean(name, self._keys)}"
                " A model's own keys are declared with config.declare(key, default, doc)."
            )
        return self._keys[name]

    def __getitem__(self, name: str) -> Any:
        key = self.key(name)
        value = self._values[name]
        if key.type == "func" and isinstance(value, str):
            return _load_function(name, value)
        return os.path.expanduser(value) if key.path and isinstance(value, str) else value

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = _check(self.key(name), value)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> KeysView[str]:
        """Returns the declared names."""
        return self._keys.keys()

    def update(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Sets several keys."""
        for name, value in dict(values).items():
            self[name] = value

    def set_default(self, name: str, value: Any) -> None:
        """Sets a key, and makes the value its default: it may then have no effect, unsaid."""
        self[name] = value
        self._keys[name] = self._keys[name]._replace(default=self._values[name])

    def copy(self) -> "Config":
        """Returns an independent configuration with the same keys and values."""
        other = Config()
        other._keys, other._values = dict(self._keys), dict(self._values)
        other.given, other.code_allowed = set(self.given), self.code_allowed
        other.own_flags = dict(self.own_flags)
        return other

    def to_dict(self) -> dict[str, Any]:
        """Returns {key: JSON value}; functions become `package.module:function`."""
        return {name: _plain(self._values[name]) for name in sorted(self._keys)}

    def to_text(self) -> str:
        """Returns the configuration for people: one `key = value` per line."""
        values = self.to_dict()
        width = max(map(len, values))
        return "".join(f"{k:<{width}} = {json.dumps(v)}\n" for k, v in values.items())

    def to_json(self) -> str:
        """Returns the configuration for machines; `update(json.loads(…))` restores it exactly."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def restore(self, values: Mapping[str, Any]) -> None:
        """Sets saved values; a function without an importable name keeps the model's own."""
        for name, value in values.items():
            if name in self._keys and _plain(self._values[name]) != value:
                self[name] = value

    def without_effect(self) -> list[str]:
        """Returns a sentence for each key that was set but cannot take effect.

        These are keys of the command line, and filters wherever they were set.
        """
        found = []
        for name, key in self._keys.items():
            value = self._values[name]
            asked = name in self.given or re.search(r"\.filter_(fn|regex)$", name)
            if asked and value != key.default and not self.holds(key.needs):
                found.append(f"{name} has no effect without {key.needs}.")
        return found

    def holds(self, needs: str) -> bool:
        """Returns whether the condition of a `schema.Key` holds: 'key', 'key=value', 'key!=value'.

        A key alone must not be empty, 0 or false.
        """
        name, operator, text = re.fullmatch(r"([^=!]*)(!?=)?(.*)", needs).groups()  # type: ignore[union-attr]
        if not name:
            return True
        value = self._values[name]
        return (to_text(value) == text) == (operator == "=") if operator else bool(value)


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old value, new value)} of two `to_dict()` results, `None` where absent."""
    names = sorted(set(old) | set(new))
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def seed_of(text: str) -> int:
    """Returns the seed that `trainer.random_seed` means: an int in [0, 2**31)."""
    try:
        return int(text) % 2**31
    except ValueError:
        return zlib.crc32(text.encode(errors="surrogatepass")) % 2**31


# ---------------------------------------------------------------------------- values and types


def _type_of(key: str, value: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "str"}
    if type(value) in names:
        return names[type(value)]
    if callable(value):
        return "func"
    if isinstance(value, list | tuple) and value and type(value[0]) in (int, float, str):
        return f"list({names[type(value[0])]})"
    raise UserError(f"Config key {key!r}: give type= one of {', '.join(TYPES)}.")


def _check(key: schema.Key, value: Any) -> Any:
    """Returns `value` in the key's own type, or raises `UserError`."""
    if key.type == "func":
        ok = value is None or callable(value) or isinstance(value, str)
        value = value or None
        if isinstance(value, str) and not re.fullmatch(r"[\w.]+:[\w.<>]+", value):
            ok = False
    elif key.type.startswith("list("):
        kind = key.type[5:-1]
        ok = isinstance(value, list | tuple) and all(_is(v, kind) for v in value)
        value = (
            [float(v) for v in value] if ok and kind == "float" else list(value) if ok else value
        )
    else:
        if key.name == "trainer.random_seed" and _is(value, "int"):
            value = str(value)
        ok = _is(value, key.type)
        value = float(value) if ok and key.type == "float" else value
    if not ok:
        hint = " (a function, or 'package.module:function')" if key.type == "func" else ""
        raise UserError(f"Config key {key.name!r} takes {key.type}{hint}, not {value!r}.")
    if key.choices and value not in key.choices:
        raise UserError(
            f"Config key {key.name!r} takes one of {', '.join(map(repr, key.choices))}, "
            f"not {value!r}.{did_you_mean(str(value), map(str, key.choices))}"
        )
    for number in value if isinstance(value, list) else [value]:
        if not schema.inside(number, key.within):
            raise UserError(f"Config key {key.name!r} must be in {key.within}, not {number!r}.")
    return value


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a kind of number or text; a bool is not a number."""
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if isinstance(value, int):
        # As many bits as TensorFlow's int64 has, or as a float holds.
        return kind in ("int", "float") and abs(value) < 2**63
    return isinstance(value, {"float": float, "str": str}.get(kind, ()))


def _plain(value: Any) -> Any:
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else value


def _load_function(name: str, dotted: str) -> Any:
    module, _, attribute = dotted.partition(":")
    try:
        function = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"Config key {name!r}: cannot load {dotted!r} as 'package.module:function': {error}."
        ) from None
    return function


def foreign_code(config: Config, values: Mapping[str, Any], trusted: str) -> list[str]:
    """Returns the functions in saved values that reading them would import, as `key=function`.

    Excluded are the configuration's own and those that live in the trusted package.

    Args:
      config: a `Config`.
      values: saved values, as in config.json.
      trusted: the name of the model's module.
    """
    found = []
    for name, value in values.items():
        if name in config and config.key(name).type == "func" and isinstance(value, str):
            module, _, attribute = value.partition(":")
            package = module == trusted or module.startswith(f"{trusted}.")
            if _plain(config._values[name]) != value and not (package and "." not in attribute):
                found.append(f"{name}={value}")
    return found


# ---------------------------------------------------------------------------- models and flags


def load_model(name: str) -> Any:
    """Returns the model module of that name, after checking `config`, `datasets` and `build`.

    Raises:
      UserError: there is no such module, or it is not a model.
    """
    quiet.import_tensorflow()  # before the module does, with its banner
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
            # Some entries of the path of an editable install are not folders.
            folders = filter(os.path.isdir, importlib.import_module(parent).__path__)
            known += [f"{parent}.{f.split('.')[0]}" for d in folders for f in os.listdir(d)]
        raise UserError(
            f"{flag}={name}: no module named {error.name!r}.{did_you_mean(name, known)} "
            + "; ".join(hidden_packages())
        ) from None


def from_text(key: schema.Key, text: str) -> Any:
    """Returns the value of a `schema.Key` that the text of its flag means.

    Raises:
      ValueError: the text is not a value of the key's type.
    """
    try:
        if key.type.startswith("list("):
            parts = [part.strip() for part in text.split(",") if part.strip()]
            value: Any = [_number(part, key.type[5:-1]) for part in parts]
        elif key.type == "bool":
            value = flags.BooleanParser().parse(text)
        else:
            value = _number(text, key.type)
    except ValueError:
        raise ValueError(f"takes {key.type}") from None
    return _check(key, value)


def to_text(value: Any) -> str:
    """Returns the text that a flag takes for a value; `from_text` reads it back."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(_plain(value))


class _Parser(flags.ArgumentParser):
    """Reads one flag's text as a value of its key."""

    def __init__(self, key: schema.Key) -> None:
        self.key = key
        self.syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        return from_text(self.key, argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return self.key.type


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return to_text(value)


class _PathParser(flags.ArgumentParser):
    """Reads a path; a leading `~` is the home folder."""

    syntactic_help = ""

    def parse(self, argument: Any) -> Any:
        return os.path.expanduser(argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return "string"


def _number(text: str, kind: str) -> Any:
    return {"int": int, "float": float}.get(kind, str)(text)


def define_path(
    name: str, default: str | None, doc: str, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines the flag of a file or folder, in which a leading `~` is expanded."""
    module = sys._getframe(1).f_globals["__name__"]
    flags.DEFINE(
        _PathParser(), name, default, doc, flag_values, flags.ArgumentSerializer(),
        module_name=sys.argv[0] if module == "__main__" else module,  # as absl names it
    )  # fmt: skip


def _define_float(
    name, default, doc, flag_values, within="", lower_bound=-math.inf, upper_bound=math.inf
):
    """Defines the flag of a decimal number in a range such as '(0, 1]'; a NaN lies in none."""
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
      values: where the flags of one program are defined, so that another can run beside it.
      kinds: 'path', 'float' (which takes `within`, a range such as '(0, 1]'), or the end of the
        name of a function of absl, as in 'integer'.
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
    """Defines one absl flag per key, of the key's name and type."""
    for name in config:
        key = config.key(name)
        default = _plain(config._values[name])
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
      flag_values: where the flags are defined.
      model_needed: whether `--model` must be given.
      renamed: see `run`.

    Returns:
      (model module with the flags' values in its config or None without one, the names of the keys
      that were set, the remaining positional arguments).

    Raises:
      UserError: for any mistake in the command line, with the flag's name.
      HelpWanted: `--help` or `--helpfull` was given.
    """
    from trainer import presets  # which imports this module

    argv, wanted = _without_help(expand_flag_files(argv))
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
        raise _flag_error(error, renamed, flag_values) from None
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
    """Makes flags that a user's module defines with absl flags of this program; returns them."""
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
    """Raises `UserError` if one of these flags was given, which would have no effect."""
    for name in names:
        if options[name].present:
            raise UserError(f"--{name} has no effect: {why}")


def expand_flag_files(argv: list[str], seen: tuple[str, ...] = ()) -> list[str]:
    """Returns a command line with each `--flagfile=F` replaced by the flags in that UTF-8 file.

    A file has one flag per line; empty lines and lines that begin with `#` or `//` are skipped. It
    may name further files. A byte-order mark is skipped too, which absl's own reader does not.

    Raises:
      UserError: a file cannot be read, or a flag's name is too long; the message names it.
    """
    expanded, left = [], list(argv)
    while left:
        word = left.pop(0)
        name, _, path = word.lstrip("-").partition("=")
        if word.startswith("-") and len(name) > 200:  # for which absl cannot look for similar ones
            raise UserError(f"{word[:40]}…: there is no flag with so long a name.")
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


def _without_help(argv: list[str]) -> tuple[list[str], str]:
    """Returns the command line without help flags, and the one that was there or ''."""
    helps = [a for a in argv[1:] if a.lstrip("-") in helptext.FLAGS and a.startswith("-")]
    return [a for a in argv if a not in helps], helps[-1].lstrip("-") if helps else ""


def _flag_error(error, renamed, flag_values):
    old = getattr(error, "flagname", None)
    now = renamed.get(old) or renamed.get(str(old).removeprefix("no"))
    line = f"--{old} is now {now}" if now else _one_line(error)
    if isinstance(error, flags.UnrecognizedFlagError) and not now and "Did you mean" not in line:
        line += _by_last_parts(old, flag_values)
    return UserError(line)


def _by_last_parts(name, flag_values):
    """`. Did you mean …?` with dotted flags whose last parts resemble a name; the nearest first."""
    full = {}
    for known in flag_values:
        parts = known.split(".")
        for first in range(len(parts)):
            full.setdefault(".".join(parts[first:]), []).append(f"--{known}")
    near = difflib.get_close_matches(name.removeprefix("no") or name, full, n=3, cutoff=0.7)
    found = list(dict.fromkeys(known for last in near for known in full[last]))[:3]
    return f". Did you mean {' or '.join(found)}?" if found else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).replace(" ?", "?")


# ---------------------------------------------------------------------------- programs


def run(
    main: Callable[[Any, set[str], list[str]], int | None],
    argv: list[str] | None = None,
    stopped: str | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
    model_needed: bool = True,
    renamed: Mapping[str, str] = {},
) -> NoReturn:
    """Runs `main(model, given, rest)` as a program: flags, help, one-line errors, exit code.

    What the user can fix becomes one line on stderr and exit code 1; `--debug` adds its traceback.
    Any other error is a bug: its traceback is followed by a line that asks for a report.

    Args:
      main: gets what `from_flags` returns; what it returns is the exit code.
      argv: the command line; `sys.argv` if None.
      stopped: a line for Ctrl-C, exit code 130; with None, KeyboardInterrupt is raised.
      flag_values: where the program's flags are defined.
      model_needed: whether `--model` must be given; without one, `main` gets None.
      renamed: {name of an earlier flag: what to give now}, for a message.
    """

    def work(argv: list[str]) -> int | None:
        return main(*from_flags(argv, flag_values, model_needed, renamed))

    _guarded(work, argv, stopped)


def run_without_model(
    main: Callable[..., int | None],
    argv: list[str] | None = None,
    stopped: str | None = None,
    arguments: Sequence[str] = (),
    flag_values: flags.FlagValues = flags.FLAGS,
    renamed: Mapping[str, str] = {},
) -> NoReturn:
    """Runs `main(*rest)` as a program whose flags are all defined already; otherwise as `run`.

    Args:
      main: gets the positional arguments.
      argv: the command line; `sys.argv` if None.
      stopped: see `run`.
      arguments: names of the positional arguments, in order; those in brackets may be omitted, and
        one that ends with '…' may be repeated.
      flag_values: where the program's flags are defined.
      renamed: see `run`.
    """
    needed = [name for name in arguments if not name.startswith("[")]

    def work(argv: list[str]) -> int | None:
        argv, wanted = _without_help(expand_flag_files(argv))
        if wanted:
            raise helptext.Wanted(helptext.render(flag_values, None, wanted, arguments))
        try:
            rest = flag_values(argv)[1:]
        except flags.Error as error:
            raise _flag_error(error, renamed, flag_values) from None
        if len(rest) > len(arguments) and not "".join(arguments[-1:]).strip("[]").endswith("…"):
            raise UserError(f"unexpected argument {rest[len(arguments)]!r}")
        if len(rest) < len(needed):
            raise UserError(f"give {' '.join(arguments)}; {needed[len(rest)]} is missing")
        return main(*rest)

    _guarded(work, argv, stopped)


def _guarded(
    work: Callable[[list[str]], int | None], argv: list[str] | None, stopped: str | None
) -> NoReturn:
    with quiet.filtered():
        for stream in ("stdout", "stderr"):
            setattr(sys, stream, _Tolerant(getattr(sys, stream)))
        _one_line_errors(work, sys.argv if argv is None else argv, stopped)


def _one_line_errors(
    work: Callable[[list[str]], int | None], argv: list[str], stopped: str | None
) -> NoReturn:
    try:
        sys.exit(work(argv))
    except helptext.Wanted as wanted:
        print(wanted)
        sys.exit(0)
    except (UserError, flags.Error, OSError, MemoryError) as error:
        # An OSError without the name of a file is not about a file of the user: it is a bug.
        if isinstance(error, OSError) and not error.filename:
            _report_bug()
        if any(a in ("--debug", "-d", "-debug") for a in argv):
            raise
        line = _one_line(error)
        if isinstance(error, OSError):
            line = f"{error.filename}: {error.strerror or error}"
        if isinstance(error, MemoryError):
            line = f"out of memory{': ' * bool(line)}{line}"
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if stopped is None:
            raise
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, ImportError) and hidden_packages():
            print(f"error: {hidden_packages()[0]}", file=sys.stderr)
            sys.exit(1)
        _report_bug()


def hidden_packages() -> list[str]:
    """Returns a line for each package of ours that a file of the user's hides.

    `python -m` searches the current folder first, so that a user's retrieval.py replaces ours.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    remedy = "rename it, or run `prototrain` instead of `python -m`"
    lines = []
    for name in ("metriclearn", "retrieval", "models"):
        file: str | None = getattr(sys.modules.get(name), "__file__", None)
        if file and os.path.abspath(file) != os.path.join(home, name, "__init__.py"):
            # Ours has no __init__.py, so that both folders are searched until the user's has one.
            how = "remove this file" if name == "models" else remedy
            lines.append(f"{file} hides prototrain's package {name}: {how}")
    return lines


def _report_bug() -> NoReturn:
    traceback.print_exc()
    versions = [f"Python {platform.python_version()}"]
    for name in ("prototrain", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.insert(0, f"{name} {importlib.metadata.version(name)}")
    print(
        "This is a bug, in your own code or in prototrain. In prototrain: please report the lines "
        f"above with your command, and {', '.join(versions)}.",
        file=sys.stderr,
    )
    sys.exit(1)


class _Tolerant:
    """A text stream that stays usable when its reader goes away: further text is dropped.

    Characters that its encoding lacks are escaped. Closed streams, which Python shows as None, are
    dropped too.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream.stream if isinstance(stream, _Tolerant) else stream
        with contextlib.suppress(AttributeError, ValueError, OSError):
            self._stream.reconfigure(errors="backslashreplace")

    @property
    def stream(self) -> Any:
        return self._stream

    def write(self, text: str) -> int:
        return self._try("write", text) or len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *arguments: Any) -> Any:
        if self._stream is None:
            return None
        try:
            return getattr(self._stream, method)(*arguments)
        except OSError:
            # Python flushes the stream again at exit: what is buffered must go somewhere.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except ValueError:  # closed
            pass
        return None

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
