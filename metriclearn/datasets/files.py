"""Writes files atomically."""

import contextlib
import errno
import fcntl
import os
import re
import tempfile


def write(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file atomically: there is always the complete old or new file.

    Removes the temporary file of a killed writer.

    Args:
      path: the file, in a folder that exists.
      data: its new content.

    Raises:
      OSError: the file cannot be written; the old file is unchanged.
    """
    path = os.path.abspath(path)
    file = _temporary(path)
    try:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(file.name, 0o666 & ~mask)
        os.replace(file.name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        if isinstance(error, OSError) and not error.filename:
            error.filename = path  # the error of a full disk does not name the file
        raise
    finally:
        with contextlib.suppress(OSError):  # tries again to write the rest on a full disk
            file.close()


def _temporary(path):
    """Opens `.NAME.xxxxxxxx.tmp` beside a file; it is locked while its writer is alive."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device would be replaced
        raise OSError(errno.EINVAL, "is a folder or a device, not a file to write", path)
    folder, name = os.path.split(path)
    start = f".{name[:40]}."
    for old in os.listdir(folder):
        if old.startswith(start) and re.fullmatch(r"\w{8}\.tmp", old[len(start) :]):
            old = os.path.join(folder, old)
            with contextlib.suppress(OSError), open(old, "rb") as left:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(old)
    while True:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (the caller closes it)
            dir=folder, prefix=start, suffix=".tmp", delete=False
        )
        with contextlib.suppress(OSError):  # some disks have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):  # nobody removed it as a dead writer's before it was locked
            return file
        file.close()
