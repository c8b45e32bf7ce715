"""Configuration: flat dotted keys, declared once, the same in Python, as flags and on disk."""

import contextlib
import difflib
import importlib
import json
import os
import re
import sys

from absl import app, flags

from trainer import schema

TYPES = ("bool", "int", "float", "str", "func", "list(int)", "list(float)", "list(str)")


class UserError(ValueError):
    """A mistake that the user can mend; shown as one line, without a traceback."""


def did_you_mean(name, known):
    """Returns ` Did you mean …?` for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


class Config:
    """A dictionary of declared keys.

    `config[key]` returns the value, and a function for keys of type `func`. Reading or setting an
    undeclared key, or setting a value of another type, raises `UserError`.

    Args:
      values: {key: value} for keys of `trainer.schema`; a model declares its own with `declare`.
    """

    def __init__(self, values=()):
        self._keys = dict(schema.KEYS)
        self._values = {key.name: key.default for key in self._keys.values()}
        self.update(values)

    def declare(self, key, default, doc, type=None, choices=(), fixed=False):
        """Adds a key of the model's own.

        Args:
          key: flat dotted name, such as `model.margin`.
          default: its value unless set.
          doc: one line that explains it in `--help`.
          type: one of `TYPES`; taken from the default when not given.
          choices: allowed values, if only some are.
          fixed: a change makes a different run, so that resuming with it is refused.
        """
        if key in self._keys:
            raise UserError(f"Config key {key!r} is declared twice.")
        type = type or _type_of(key, default)
        self._keys[key] = schema.Key(key, type, default, doc, tuple(choices), fixed)
        self[key] = default
        self._keys[key] = self._keys[key]._replace(default=self._values[key])

    def key(self, name):
        """Returns the `schema.Key` of a declared name."""
        if name not in self._keys:
            raise UserError(
                f"No config key {name!r} is declared.{did_you_mean(name, self._keys)}"
                " A model's own keys are declared with config.declare(key, default, doc)."
            )
        return self._keys[name]

    def __getitem__(self, name):
        value = self._values[self.key(name).name]
        if self._keys[name].type == "func" and isinstance(value, str):
            return _load_function(name, value)
        return value

    def __setitem__(self, name, value):
        self._values[name] = _check(self.key(name), value)

    def __contains__(self, name):
        return name in self._keys

    def __iter__(self):
        return iter(self._keys)

    def __len__(self):
        return len(self._keys)

    def keys(self):
        return self._keys.keys()

    def update(self, values):
        for name, value in dict(values).items():
            self[name] = value

    def copy(self):
        other = Config()
        other._keys, other._values = dict(self._keys), dict(self._values)
        return other

    def to_dict(self):
        """Returns {key: JSON value}; functions become `package.module:function`."""
        return {name: _plain(self._values[name]) for name in sorted(self._keys)}

    def to_text(self):
        """Returns the configuration for people: one `key = value` a line."""
        values = self.to_dict()
        width = max(map(len, values))
        return "".join(f"{k:<{width}} = {json.dumps(v)}\n" for k, v in values.items())

    def to_json(self):
        """Returns the configuration for machines; `update(json.loads(…))` restores it exactly."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def restore(self, values):
        """Takes over saved values; a function that has no importable name keeps its own."""
        for name, value in values.items():
            if name in self._keys and _plain(self._values[name]) != value:
                self[name] = value


def diff(old, new):
    """Returns {key: (old value, new value)} of two `to_dict()` results, `None` where absent."""
    names = sorted(set(old) | set(new))
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def seed_of(text):
    """Returns the seed that `trainer.random_seed` stands for: an int in [0, 2**31)."""
    import zlib

    try:
        return int(text) % 2**31
    except ValueError:
        return zlib.crc32(text.encode()) % 2**31


# ---------------------------------------------------------------------------- values and types


def _type_of(key, value):
    names = {bool: "bool", int: "int", float: "float", str: "str"}
    if type(value) in names:
        return names[type(value)]
    if callable(value):
        return "func"
    if isinstance(value, list | tuple) and value and type(value[0]) in (int, float, str):
        return f"list({names[type(value[0])]})"
    raise UserError(f"Config key {key!r}: give type= one of {', '.join(TYPES)}.")


def _check(key, value):
    """Returns `value` in the key's own type, or raises `UserError`."""
    element = {"int": int, "float": (int, float), "str": str, "bool": bool}
    kind = key.type
    ok = False
    if kind == "func":
        ok = value is None or callable(value) or isinstance(value, str)
        value = value or None
        if isinstance(value, str) and not re.fullmatch(r"[\w.]+:[\w.<>]+", value):
            ok = False
    elif kind.startswith("list("):
        kind = kind[5:-1]
        if isinstance(value, list | tuple):
            ok = all(isinstance(v, element[kind]) and _not_bool(v, kind) for v in value)
            value = [float(v) for v in value] if ok and kind == "float" else list(value)
    else:
        if key.name == "trainer.random_seed" and _not_bool(value, "int"):
            value = str(value)
        ok = isinstance(value, element[kind]) and _not_bool(value, kind)
        value = float(value) if ok and kind == "float" else value
    if not ok:
        hint = " (a function, or 'package.module:function')" if key.type == "func" else ""
        raise UserError(f"Config key {key.name!r} takes {key.type}{hint}, not {value!r}.")
    if key.choices and value not in key.choices:
        raise UserError(
            f"Config key {key.name!r} takes one of {', '.join(map(repr, key.choices))}, "
            f"not {value!r}.{did_you_mean(str(value), map(str, key.choices))}"
        )
    return value


def _not_bool(value, kind):
    return kind == "bool" or not isinstance(value, bool)


def _plain(value):
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else value


def _load_function(name, dotted):
    module, _, attribute = dotted.partition(":")
    try:
        function = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Config key {name!r}: cannot load {dotted!r} as 'package.module:function': {error}."
        ) from None
    return function


# ---------------------------------------------------------------------------- models and flags


def load_model(name):
    """Returns the model module of that name, after checking `config`, `datasets` and `build`."""
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


def load_module(name, flag):
    """Imports the module that a flag names."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the name itself missing is the user's typo; a missing import inside it is a bug.
        if not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        parent = name.rpartition(".")[0]
        known = ["models.simple"]
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            folders = importlib.import_module(parent).__path__
            known = [f"{parent}.{f.split('.')[0]}" for d in folders for f in os.listdir(d)]
        raise UserError(
            f"{flag}={name}: no module named {error.name!r}.{did_you_mean(name, known)}"
        ) from None


def from_text(key, text):
    """Returns the value of a `schema.Key` that the text of its flag stands for.

    Raises:
      ValueError: where it is no value of the key's type.
    """
    try:
        if key.type.startswith("list("):
            parts = [part.strip() for part in text.split(",") if part.strip()]
            value = [_number(part, key.type[5:-1]) for part in parts]
        elif key.type == "bool":
            value = flags.BooleanParser().parse(text)
        else:
            value = _number(text, key.type)
    except ValueError:
        raise ValueError(f"takes {key.type}") from None
    return _check(key, value)


def to_text(value):
    """Returns the text that a flag takes for a value; `from_text` reads it back."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(_plain(value))


class _Parser(flags.ArgumentParser):
    """Reads one flag's text as a value of its key."""

    def __init__(self, key):
        self.key = key
        self.syntactic_help = ""

    def parse(self, argument):
        return from_text(self.key, argument) if isinstance(argument, str) else argument

    def flag_type(self):
        return self.key.type


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value):
        return to_text(value)


def _number(text, kind):
    return {"int": int, "float": float}.get(kind, str)(text)


def define_flags(config, module_name, flag_values=flags.FLAGS):
    """Defines one absl flag a key, of the key's name and type, in `--help` of the main module."""
    for name in config:
        key = config.key(name)
        default = _plain(config._values[name])
        doc = key.doc + (
            f" One of: {', '.join(c or repr(c) for c in key.choices)}." * bool(key.choices)
        )
        make = flags.BooleanFlag if key.type == "bool" else flags.Flag
        if key.type == "bool":
            flag = make(name, default, f"[bool] {doc}")
        else:
            default = default if default not in (None, []) else None
            flag = make(_Parser(key), _Serializer(), name, default, f"[{key.type}] {doc}")
        flags.DEFINE_flag(flag, flag_values, module_name=module_name)
        flag_values.register_key_flag_for_module(sys.argv[0], flag)


def from_flags(argv, flag_values=flags.FLAGS):
    """Parses a command line in two stages: `--model`, then every key of that model.

    Args:
      argv: the command line, program name first. `--model` must have been defined.

    Returns:
      (model module with the flags' values in its config, the names of the keys that were set,
      the remaining positional arguments).

    Raises:
      UserError: for any mistake in the command line, with the flag's name.
    """
    wants_help = [a for a in argv[1:] if a.lstrip("-").split("=")[0] in _HELP]
    try:
        flag_values([a for a in argv if a not in wants_help], known_only=True)
        if flag_values["model"].value is None:
            if wants_help:
                flag_values(argv)
            raise UserError("Give a model: --model=models.simple (a module name).")
        model = load_model(flag_values["model"].value)
        define_flags(model.config, model.__name__, flag_values)
        flag_values.unparse_flags()
        rest = flag_values(argv)
    except flags.Error as error:
        text = " ".join(str(error).split())
        raise UserError(text.replace(" ?", "?")) from None
    given = {name for name in model.config if flag_values[name].present}
    for name in given:
        model.config[name] = flag_values[name].value
    return model, given, rest[1:]


_HELP = ("help", "helpfull", "helpshort", "helpxml", "?")


def run(main, argv=None):
    """Runs `main(model, given, rest)` as a program: flags, `--help`, one-line errors, exit code.

    A `UserError` prints one line and exits 1; `--debug` shows its traceback.
    """
    argv = sys.argv if argv is None else argv
    app.define_help_flags()
    try:
        sys.exit(main(*from_flags(argv)))
    except UserError as error:
        if any(a in ("--debug", "-d", "-debug") for a in argv):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def run_without_model(main, argv=None):
    """Runs `main()` as a program whose flags are all defined already; otherwise as `run`."""
    argv = sys.argv if argv is None else argv
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}")
        main()
    except (UserError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
