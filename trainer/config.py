"""Configuration: flat dotted keys, declared once, the same in Python, as flags and on disk."""

import contextlib
import difflib
import importlib
import importlib.metadata
import json
import os
import re
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, KeysView, Mapping
from typing import Any

from absl import flags

from trainer import schema

TYPES = ("bool", "int", "float", "str", "func", "list(int)", "list(float)", "list(str)")


class UserError(ValueError):
    """An error the user can fix; shown as one line, without a traceback."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean …?` with the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Runs optional work: an error becomes a warning on stderr.

    Args:
      what: what is missing after an error, such as 'the plots'.
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
      place: the file or folder to name if an OSError names none.
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

    `config[key]` returns the value; for a key of type `func` the function, for a path with `~`
    expanded. Reading or setting an undeclared key raises `UserError`, and so does a value of
    another type or outside the key's range.

    Attributes:
      given: names of the keys that the command line set.
      own_flags: {name: text} of given flags that the model defines with absl.
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
        """Adds a key of the model.

        Args:
          key: flat dotted name, such as `model.margin`.
          default: its value unless set.
          doc: one line that explains it in `--helpfull`.
          type: one of `TYPES`; default: the type of `default`.
          choices: the allowed values, if limited.
          fixed: a change makes a different run, so resuming with it is refused.
          within: the range of a number, or of a list's numbers, such as '[0, 1)' or '(0, inf)'.
          path: a file or folder; a leading `~` is expanded when the key is read.
          essential: `--help` lists the key first; by default only for the path of the data.
          needs: condition for the key to have an effect: 'model.xent', 'model.loss=proxy' or
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
        self._values[name] = check(self.key(name), value)

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
        """Sets a key and its default; there is then no warning if it has no effect."""
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
        return {name: plain(self._values[name]) for name in sorted(self._keys)}

    def to_text(self) -> str:
        """Returns the configuration for people: one `key = value` per line."""
        values = self.to_dict()
        width = max(map(len, values))
        return "".join(f"{k:<{width}} = {json.dumps(v)}\n" for k, v in values.items())

    def to_json(self) -> str:
        """Returns the configuration for machines; `update(json.loads(…))` restores it exactly."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def restore(self, values: Mapping[str, Any]) -> None:
        """Sets saved values; for a function without an importable name, keeps the model's."""
        for name, value in values.items():
            if name in self._keys and plain(self._values[name]) != value:
                self[name] = value

    def without_effect(self) -> list[str]:
        """Returns a sentence for each key that was set but has no effect.

        Checked are keys of the command line, and filters in any case.
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
    """Returns the seed for `trainer.random_seed`: an int in [0, 2**31)."""
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


def check(key: schema.Key, value: Any) -> Any:
    """Returns `value` in the key's type, or raises `UserError`."""
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
        # Within TensorFlow's int64, or a finite float.
        return kind in ("int", "float") and abs(value) < 2**63
    return isinstance(value, {"float": float, "str": str}.get(kind, ()))


def plain(value: Any) -> Any:
    """Returns the JSON value of a setting: a function becomes `package.module:function`."""
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

    Functions already in the configuration and functions of the trusted package are excluded.

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
            if plain(config._values[name]) != value and not (package and "." not in attribute):
                found.append(f"{name}={value}")
    return found


def from_text(key: schema.Key, text: str) -> Any:
    """Parses the text of a flag as a value of its `schema.Key`.

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
    return check(key, value)


def to_text(value: Any) -> str:
    """Returns the text of a flag for a value; `from_text` parses it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(plain(value))


def _number(text: str, kind: str) -> Any:
    return {"int": int, "float": float}.get(kind, str)(text)
