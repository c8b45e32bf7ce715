"""Publishes files that belong together: readers see the complete old or new set.

The files are written into a hidden folder, `.NAME.writing`. When it is complete, it is renamed to
`.NAME.ready`, and its files are moved to their places. A kill before the rename leaves the old set;
after it, the next writer or reader of the folder completes the moves (`settle`).
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator

from trainer import files

_KIND = "unfinished set of files"


@contextlib.contextmanager
def together(prefix: str | os.PathLike) -> Iterator[str]:
    """Publishes several files at once, when the block ends without an error.

    Args:
      prefix: common prefix of the files' paths, such as `analysis/model-20`.

    Yields:
      The prefix under which to write them meanwhile, with the same last part.

    Raises:
      BlockingIOError: another process is writing the same files.
      OSError: the files cannot be written; the old files are unchanged.
    """
    folder, name = os.path.split(os.path.abspath(prefix))
    writing, ready = (os.path.join(folder, f".{name}.{state}") for state in ("writing", "ready"))
    os.makedirs(folder, exist_ok=True)
    settle(folder)
    with files.only_writer(writing):
        files.claim(writing, _KIND)
        try:
            files.remove(writing, _KIND, _written(name))
            yield os.path.join(writing, name)
            files.sync(writing)
            os.rename(writing, ready)
        except BaseException as error:
            with contextlib.suppress(OSError, ValueError):
                files.discard(writing, _KIND, _written(name))
            if isinstance(error, OSError) and error.filename:
                error.filename = str(error.filename).replace(writing, folder)
            raise
    settle(folder)


def settle(folder: str | os.PathLike) -> None:
    """Completes the moves that a killed writer began, and removes incomplete files."""
    for entry in os.listdir(folder):
        if found := re.fullmatch(r"\.(.+)\.(writing|ready)", entry):
            path, (name, state) = os.path.join(folder, entry), found.groups()
            with contextlib.suppress(OSError, ValueError):
                _arrive(path, folder, name) if state == "ready" else _remove_abandoned(path, name)


def _written(name):
    return rf"{re.escape(name)}[^/]*|\.[^/]*\.tmp"


def _arrive(ready, folder, name):
    if not os.listdir(ready):  # killed just before the folder was removed, the last step
        return os.rmdir(ready)
    if files.kind_of(ready) != _KIND:
        return
    for file in sorted(os.listdir(ready)):
        if re.fullmatch(_written(name), file):
            os.replace(os.path.join(ready, file), os.path.join(folder, file))
    files.sync(folder)
    files.discard(ready, _KIND, _written(name))


def _remove_abandoned(writing, name):
    with open(os.path.join(writing, files.LOCK)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its writer is alive
        files.discard(writing, _KIND, _written(name))
