"""Files that appear whole or not at all."""

import contextlib
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
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(out.name)
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
    """Writes a JSON list, one element a line."""
    with published(path, "w") as out:
        for n, value in enumerate(values):
            out.write("[" if n == 0 else ",\n")
            json.dump(plain(value), out, ensure_ascii=False, allow_nan=False)
        out.write("]\n" if values else "[]\n")


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
