"""Looks up options by name; the error suggests the nearest name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry")


def did_you_mean(word: object, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """Returns " (did you mean 'x'?)" for the nearest of `choices`, or '' if none is near.

    Args:
        word: the user's word.
        choices: the existing names.
        cutoff: minimum similarity, 0 to 1, see `difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1, cutoff=cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""


def resolve(option: str | Entry, table: Mapping[str, Entry], kind: str) -> Entry:
    """Returns the entry `option` of `table`; an `option` that is not a string is returned
    unchanged.

    Args:
        option: a name in `table`, or the object itself (a function, a `Distance`).
        table: maps names to objects.
        kind: kind of the entries, for the error message ("miner", "distance").

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


def check_options(function: Callable[..., Any], options: Iterable[str], whose: str) -> None:
    """Checks that a function has keyword-only parameters of these names.

    Args:
        function: a loss or a miner.
        options: names.
        whose: name of the function for the error message ("loss 'triplet'").

    Raises:
        ValueError: a parameter does not exist. The message suggests the nearest name.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            names = ", ".join(known) or "no options"
            raise ValueError(
                f"{whose} has no option {option!r}{did_you_mean(option, known)}: it takes {names}"
            )
