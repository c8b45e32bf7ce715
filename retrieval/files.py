"""Files that appear whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile

import numpy as np


@contextlib.contextmanager
def published(path, mode="wb"):
    """Opens a temporary file beside `path`; on leaving without an error it takes that name."""
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    encoding = None if "b" in mode else "utf-8"
    with tempfile.NamedTemporaryFile(
        mode, dir=folder, prefix=".", suffix=".tmp", delete=False, encoding=encoding
    ) as out:
        try:
            yield out
            out.flush()
            os.fsync(out.fileno())
            os.chmod(out.name, 0o666 & ~_umask())
            os.replace(out.name, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(out.name)
            if isinstance(error, OSError) and error.errno and not error.filename:
                error.filename = path  # a full disk does not tell where
            raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path, value):
    """Writes JSON with string keys; NaN and infinities, which JSON lacks, become null."""
    with published(path, "w") as out:
        json.dump(plain(value), out, indent=1, ensure_ascii=False, allow_nan=False)
        out.write("\n")


def write_json_list(path, values):
    """Writes a JSON list of plain values, one element a line."""
    with published(path, "w") as out:
        for n, value in enumerate(values):
            out.write("[" if n == 0 else ",\n")
            out.write(json.dumps(value, ensure_ascii=False, allow_nan=False))
        out.write("]\n" if values else "[]\n")


def write_table(path, columns):
    """Writes {name: str [N]} as a Parquet table."""
    import pyarrow
    from pyarrow import parquet

    texts = {name: pyarrow.array(v, pyarrow.string()) for name, v in columns.items()}
    table = pyarrow.table(texts)
    with published(path) as out:
        parquet.write_table(table, out)


def read_table(path, names):
    """Reads columns of a Parquet file as a pyarrow.Table; ValueError where it is damaged."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=list(names)).select(list(names))
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a table that can be read: {reason}") from None


def read_lines(path) -> list:
    """The lines of a UTF-8 file, none of which may be empty; ValueError, naming it, otherwise."""
    try:
        # utf-8-sig: a mark that some programs begin a file with is no part of its first line.
        with open(path, encoding="utf-8-sig", newline="") as text:
            # Only line feeds part lines: an id may hold any other character.
            values = text.read().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None
    values = [value.removesuffix("\r") for value in values]
    if values == [""]:
        return []
    if "" in values:
        raise ValueError(f"{path}, line {values.index('') + 1}: is empty")
    return values


def read_json(path):
    """Reads a JSON file; ValueError, naming it, where it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as text:
            return json.load(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def known_keys(path, keys, what) -> dict:
    """The JSON object in a file; ValueError where it lacks some of the keys that are `what`'s."""
    value = read_json(path)
    missing = sorted(keys - value.keys()) if isinstance(value, dict) else ["an object"]
    if missing:
        raise ValueError(f"{path}: is not of {what}: it lacks {missing[0]}")
    return value


def sha256(path) -> str:
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@contextlib.contextmanager
def only_writer(folder):
    """Makes the folder and keeps other writers out of it; ValueError where one is at work."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another program is writing there; wait for it") from None
        yield


def plain(value):
    """The value in JSON's own types."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
