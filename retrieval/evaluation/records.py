"""Results as dataclasses that can be written to JSON and read again."""

import dataclasses
import math
import types
import typing
from typing import Any, Self

# Fields with another name in JSON.
SPELLED = {
    "recall": "recall@k",
    "precision": "precision@k",
    "macro_recall": "macro_recall@k",
    "map_at_r": "map@r",
    "interval": "interval95",
    "intervals": "interval95",
}


class Record:
    """Base class of frozen dataclasses that are written as JSON objects.

    A field with a default is omitted if it is None or empty. Add new fields with a default, so
    that results written by earlier versions remain readable. In JSON, the fields of an optional
    record with the metadata `inlined` are at the level of the other fields, not one level below.
    """

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary for `trainer.files.write_json`, in the order of the fields."""
        result = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata.get("inlined"):
                result |= value.to_json() if value else {}
            elif _required(field) or value not in (None, {}, [], ()):
                result[_key(field)] = _written(value)
        return result

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Returns the record whose `to_json` was written to a file and read again.

        Integer keys, which JSON turns into text, are integers again; null is NaN where the field
        is a float. Unknown keys are ignored.

        Raises:
          KeyError: a required key is missing.
        """
        kinds = typing.get_type_hints(cls)
        given = {}
        for field in dataclasses.fields(cls):
            kind = kinds[field.name]
            if field.metadata.get("inlined"):
                records = [k for k in typing.get_args(kind) if k is not types.NoneType]
                matching = [k for k in records if _required_keys(k) <= data.keys()]
                given[field.name] = matching[0].from_json(data) if matching else None
            elif _required(field) or _key(field) in data:
                given[field.name] = _read(kind, data[_key(field)])
        return cls(**given)


def _key(field):
    return SPELLED.get(field.name, field.name)


def _required(field):
    return field.default is field.default_factory is dataclasses.MISSING


def _required_keys(cls):
    return {_key(field) for field in dataclasses.fields(cls) if _required(field)}


def _written(value):
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {name: _written(inner) for name, inner in value.items()}
    return [_written(inner) for inner in value] if isinstance(value, list | tuple) else value


def _read(kind, value):
    """Returns a JSON value as the type that a field declares."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if value is None:
        return math.nan if float in (kind, *inner) else None
    if origin is types.UnionType:  # X | None
        return _read(inner[0], value)
    if origin is dict:
        return {inner[0](name): _read(inner[1], each) for name, each in value.items()}
    if origin in (list, tuple):
        return origin(_read(inner[0], each) for each in value)
    if kind is Any:
        return value
    return kind.from_json(value) if issubclass(kind, Record) else kind(value)
