"""Options by name: look-up in a table, and an error that suggests the nearest name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def did_you_mean(word: object, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """Returns " (did you mean 'x'?)" for the nearest of `choices`, or '' if none is near.

    Args:
        word: what the user wrote.
        choices: the names that exist.
        cutoff: least similarity, 0 to 1, as `difflib.get_close_matches` measures it.
    """
    near = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1, cutoff=cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""


def resolve(option: str | Entry, table: Mapping[str, Entry], kind: str) -> Entry:
    """Returns the entry of `table` called `option`; anything but a string is returned unchanged.

    Args:
        option: a name in `table`, or the object itself (a function, a `Distance`).
        table: maps names to objects.
        kind: what the table holds, for the error message ("miner", "distance").

    Raises:
        ValueError: the name is not in the table. The message suggests the nearest one.
    """
    if not isinstance(option, str):
        return option
    if option not in table:
        names = ", ".join(sorted(table))
        hint = did_you_mean(option, table)
        raise ValueError(f"unknown {kind} '{option}'{hint}: use one of {names}")
    return table[option]
