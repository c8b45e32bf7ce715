"""Options by name: look-up in a table, and an error that suggests the nearest name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

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


def check_options(function: Callable[..., Any], options: Iterable[str], whose: str) -> None:
    """Checks that a function has keyword-only parameters of these names.

    Args:
        function: a loss or a miner.
        options: names.
        whose: what the function is, for the error message ("loss 'triplet'").

    Raises:
        ValueError: it lacks one. The message suggests the nearest.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            names = ", ".join(known) or "no options"
            raise ValueError(
                f"{whose} has no option {option!r}{did_you_mean(option, known)}: it takes {names}"
            )
