"""Options by name: one table a kind, and an error that helps with a typo."""

import difflib


def resolve(option, table, kind):
    """The entry of `table` called `option`; anything but a string is returned as it is.

    Args:
        option: a name in `table`, or an object of the kind itself (a function, a `Distance`).
        table: dict from name to object.
        kind: what the table holds, for the error ("miner", "distance").

    Raises:
        ValueError: the name is not in the table; the message suggests the nearest one.
    """
    if not isinstance(option, str):
        return option
    if option not in table:
        near = difflib.get_close_matches(option, table, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown {kind} '{option}': {hint}one of {', '.join(sorted(table))}")
    return table[option]
