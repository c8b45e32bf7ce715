"""How this package writes a file: whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import tempfile


def write(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file atomically: a reader, a kill or a full disk meets the old file or the new.

    What a killed writer of this file has left is removed.

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
            error.filename = path  # a full disk does not name the file
        raise
    finally:
        with contextlib.suppress(OSError):  # tries again to write what a full disk refused
            file.close()


def _temporary(path):
    """Opens `.NAME.xxxxxxxx.tmp` beside a file; its lock tells whether its writer is alive."""
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
        if os.path.exists(file.name):  # not taken for a dead writer's before it was locked
            return file
        file.close()
