"""Common functions of readers of published data sets: check the layout, read lists."""

import os

import numpy as np


def require(root, names, dataset, page, images=True):
    """Checks that files or folders exist under `root`.

    Args:
      root: the data set's folder.
      names: paths relative to it; a tuple lists alternatives.
      dataset: name of the data set, for the message.
      page: its official page.
      images: False if the last name is the images' folder, which may be in another place.

    Returns:
      Their paths; of alternatives, the first that exists.

    Raises:
      ValueError: files are missing; the error names them and the official page.
    """
    root = os.fspath(root)
    found, missing = [], []
    for name in names:
        choices = [name] if isinstance(name, str) else list(name)
        paths = [os.path.join(root, *choice.split("/")) for choice in choices]
        path = next(filter(os.path.exists, paths), None)
        if path is None and not images and name == names[-1]:
            path = paths[0]
        if path is None:
            missing.append(" or ".join(choices))
        found.append(path)
    if missing:
        raise ValueError(
            f"{dataset}: {root} has no {', no '.join(missing)}; get the data set from its official "
            f"page ({page}) and unpack it there"
        )
    return found


def read_text(path):
    """The text of a UTF-8 file, with or without a byte-order mark; ValueError names the file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def read_table(path, columns, *, skip_header=None, counted=False, separator=None):
    """Rows of a text list, each with exactly `columns` cells.

    Args:
      path: the file, UTF-8.
      columns: number of cells of a row.
      skip_header: the header line's words, checked; None when there is no header.
      counted: whether the first line gives the number of rows, which is checked.
      separator: separator of the cells; None: white space.

    Returns:
      A list of (line number, list of cells).

    Raises:
      ValueError: with the file and line.
    """
    lines = read_text(path).splitlines()
    start, count = 0, None
    if counted:
        try:
            count = int(lines[0])
        except (IndexError, ValueError):
            raise ValueError(f"{path}:1: the first line must be the number of rows") from None
        start = 1
    if skip_header is not None:
        header = lines[start].split() if len(lines) > start else []
        if header != list(skip_header):
            raise ValueError(
                f"{path}:{start + 1}: the header must be {' '.join(skip_header)!r}, "
                f"not {' '.join(header)!r}"
            )
        start += 1
    rows = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != columns:
            raise ValueError(f"{path}:{number}: {len(cells)} cells instead of {columns}: {line!r}")
        rows.append((number, cells))
    if count is not None and len(rows) != count:
        raise ValueError(f"{path}: {len(rows)} rows, but its first line says {count}: truncated?")
    if not rows:
        raise ValueError(f"{path}: the list is empty")
    return rows


def whole_numbers(path, line, cells):
    """The cells as 32-bit ints; decimals such as CUB's '60.0' are rounded."""
    try:
        return [int(np.array(round(float(cell)), np.int32)) for cell in cells]
    except (ValueError, OverflowError):
        raise ValueError(
            f"{path}:{line}: {' '.join(cells)!r} is not all numbers of 32 bits"
        ) from None


def check_files(paths, dataset):
    """Raises ValueError if images do not exist; the error gives their number and the first."""
    missing = [path for path in np.asarray(paths).tolist() if not os.path.isfile(path)]
    if missing:
        raise ValueError(
            f"{dataset}: {len(missing)} of {len(paths)} listed images do not exist, the first "
            f"is {missing[0]}: is an archive not unpacked?"
        )
