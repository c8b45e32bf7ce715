"""CSV files that are safe to open in a spreadsheet."""

import csv
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainer import files

# A spreadsheet runs a cell with this beginning as a formula; full-width forms too.
_FORMULA = re.compile("'*[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Replaces a CSV file atomically; `read_csv` reads it back.

    Text that a spreadsheet would run as a formula is prefixed with an apostrophe. Numbers,
    including negative ones, are not changed.

    Args:
      path: the file.
      header: names of the columns.
      rows: the cells of each row, text or numbers.
    """
    with files.published(path, "w") as out:
        table = csv.writer(out)
        table.writerows(map(_harmless, row) for row in itertools.chain([header], rows))


def read_csv(path: str | os.PathLike) -> Iterator[dict[str, str]]:
    """Yields the rows of a file of `write_csv` as {column: original text}.

    Raises:
      OSError, ValueError: the file cannot be read.
    """
    with open(path, encoding="utf-8", newline="") as text:
        rows = map(_original, csv.reader(text, strict=True))
        try:
            header = list(next(rows, ()))
            for row in rows:
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from None


def _harmless(cell: Any) -> Any:
    text = str(cell)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else cell


def _original(row):
    return [cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in row]
