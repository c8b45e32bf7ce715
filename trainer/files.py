"""How this project writes, locks, marks and removes files.

A file is published completely or not at all (`published`). A folder has one writer (`only_writer`).
A folder of this project contains a marker file (`claim`), and nothing is removed from a folder
without it (`remove`), which protects a user's files.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

MARK = ".prototrain"  # contains the kind of folder; the first file in a new folder
LOCK = ".lock"
_TEMPORARY = r"\.[^/]+\.tmp"  # a file that `published` did not finish


# ---------------------------------------------------------------------------- writing


@contextlib.contextmanager
def published(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file that takes the name `path` when the block ends without an error.

    For readers, after a kill and on a full disk, there is the complete old or new file. The next
    writer of the same file removes the temporary file of a killed writer.

    Args:
      path: the final name.
      mode: 'wb', or 'w' for UTF-8 text.

    Raises:
      OSError: the file cannot be written; its `filename` is set and the old file is unchanged.
    """
    path = os.fspath(path)
    out = _temporary(path, mode)
    try:
        yield out
        out.flush()
        os.fsync(out.fileno())
        with contextlib.suppress(OSError):  # some network disks have no file modes
            os.chmod(out.name, 0o666 & ~_umask())
        os.replace(out.name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(out.name)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = path  # the error of a full disk does not name the file
        raise
    finally:
        with contextlib.suppress(OSError):  # tries again to write the rest on a full disk
            out.close()


def _temporary(path: str, mode: str) -> IO:
    """Opens `.NAME.xxxxxxxx.tmp` beside a file; it is locked while its writer is alive."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device would be replaced
        raise OSError(errno.EINVAL, "is a folder or a device, not a file to write", path)
    folder, name = os.path.split(path)
    start = f".{name[:40]}."
    for old in os.listdir(folder or "."):
        if old.startswith(start) and re.fullmatch(r"\w{8}\.tmp", old[len(start) :]):
            old = os.path.join(folder, old)
            with contextlib.suppress(OSError), open(old, "rb") as left:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(old)
    while True:
        encoding = None if "b" in mode else "utf-8"
        out = tempfile.NamedTemporaryFile(  # noqa: SIM115 (the caller closes it)
            mode, dir=folder or ".", prefix=start, suffix=".tmp", delete=False, encoding=encoding
        )
        with contextlib.suppress(OSError):  # some disks have no locks
            fcntl.flock(out, fcntl.LOCK_EX)
        if os.path.exists(out.name):  # nobody removed it as a dead writer's before it was locked
            return out
        out.close()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a UTF-8 text file atomically."""
    with published(path, "w") as out:
        out.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replaces a JSON file atomically; NaN and infinities become null."""
    write_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sync(path: str | os.PathLike) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


# Errors of disks without hard links, locks or folder syncs.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Gives a file a second name, replacing that name; copies where hard links are unavailable."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as data, published(target) as out:
            shutil.copyfileobj(data, out)


def exchange(new: str | os.PathLike, old: str | os.PathLike) -> None:
    """Swaps two folders in one step if the system supports it; otherwise by three renames.

    Args:
      new: a folder; afterwards it has the contents of `old`.
      old: the other folder. A kill between the three renames leaves it as `<new>.old`.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(-100, os.fsencode(new), -100, os.fsencode(old), 2) == 0:
            return
    except (AttributeError, OSError):
        pass
    aside = f"{os.fspath(new)}.old"
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


# ---------------------------------------------------------------------------- reading


def read_json(path: str | os.PathLike) -> Any:
    """Returns the value in a JSON file; ValueError names the file if it is missing or damaged."""
    check_regular(path)
    try:
        with open(path, encoding="utf-8") as text:
            return json.load(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def known_keys(path: str | os.PathLike, keys: set, what: str) -> dict:
    """Returns the JSON object in a file; ValueError if it lacks a required key of a `what`."""
    value = read_json(path)
    missing = sorted(keys - value.keys()) if isinstance(value, dict) else ["an object"]
    if missing:
        raise ValueError(f"{path}: does not describe {what}: {missing[0]!r} is missing")
    return value


def write_sealed(path: str | os.PathLike, value: dict) -> None:
    """Replaces a JSON file atomically; it includes a checksum of its contents."""
    write_text(path, sealed(value))


def sealed(value: dict) -> str:
    """Returns the text that `write_sealed` writes, for object storage."""
    return _as_json(plain(value) | {"checksum": _seal(value)})


def read_sealed(path: str | os.PathLike, keys: set, what: str) -> dict:
    """Returns the value that `write_sealed` wrote, without the checksum.

    Raises:
      ValueError: the file is missing, damaged or changed, or lacks a required key of a `what`.
    """
    value = known_keys(path, keys, what)
    checksum = value.pop("checksum", None)
    if checksum is None:
        raise ValueError(f"{path}: has no checksum; an earlier version of this program wrote it")
    if checksum != _seal(value):
        raise ValueError(f"{path}: is damaged (its checksum differs)")
    return value


def _seal(value):
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def check_regular(path: str | os.PathLike) -> None:
    """Raises ValueError for a path that is not a regular file: pipes and devices may not end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: is not a file")


def plain(value: Any) -> Any:
    """Returns a value as JSON types: arrays as lists, non-finite floats as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------------------- folders


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike, wait: str = "") -> Iterator[IO]:
    """Makes a folder and keeps other writers out of it while the block runs.

    Args:
      folder: the folder; its `.lock` file is locked, not removed.
      wait: a message to print while waiting for another writer; '': raise instead of waiting.

    Yields:
      The open lock file, for a note about its holder.

    Raises:
      BlockingIOError: another process holds the lock; the message names the folder and the note.
      OSError: the folder cannot be made or written.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOCK), "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                lock.seek(0)
                holder = lock.read().strip() or "another program"
                raise BlockingIOError(
                    error.errno, f"{holder} is writing there; wait for it", os.fspath(folder)
                ) from None
            print(wait, file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            print(
                f"warning: {folder}: this disk has no locks; do not start a second writer there",
                file=sys.stderr,
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield lock


def locked(folder: str | os.PathLike) -> bool:
    """Returns whether a writer holds the lock of a folder (see `only_writer`)."""
    try:
        with open(os.path.join(folder, LOCK)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def claim(
    folder: str | os.PathLike, kind: str, earlier: Callable[[str], bool] | None = None
) -> None:
    """Creates a folder and its marker file.

    Args:
      folder: a folder that is new, empty, or marked as this kind.
      kind: the kind of contents, such as 'experiment', 'store' or 'index'.
      earlier: returns whether an unmarked folder was certainly written by an earlier version of
        this project; such a folder is marked too.

    Raises:
      ValueError: the folder contains something else; nothing was changed.
    """
    os.makedirs(folder, exist_ok=True)
    found = kind_of(folder)
    if found == kind:
        return
    inside = sorted(n for n in os.listdir(folder) if n != LOCK and not re.fullmatch(_TEMPORARY, n))
    if found or (inside and not (earlier and earlier(os.fspath(folder)))):
        what = f"is the folder of {_a(found)}" if found else f"holds {inside[0]!r}"
        raise ValueError(
            f"{folder}: {what} and is not the folder of {_a(kind)}; give a new or empty folder"
        )
    write_json(os.path.join(folder, MARK), {"kind": kind})


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def kind_of(folder: str | os.PathLike) -> str | None:
    """Returns the kind in a folder's marker file; None without one."""
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as text:
            kind = json.load(text)["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def remove(folder: str | os.PathLike, kind: str, pattern: str) -> list[str]:
    """Removes the files of a marked folder whose names this project writes.

    This is the only function that removes other than temporary files. It does not follow links. A
    subfolder is removed if it is empty after files were removed from it.

    Args:
      folder: a folder that `claim` marked.
      kind: the kind that its marker file must contain.
      pattern: regular expression that the whole path of a file within the folder must match, such
        as `versions/000001/.*`. The marker and the lock file are kept.

    Returns:
      Paths within the folder of all files that were kept, without the marker and the lock.

    Raises:
      ValueError: the folder has no such marker; nothing was removed.
    """
    folder = os.fspath(folder)
    if kind_of(folder) != kind:
        raise ValueError(
            f"{folder}: has no marker of {_a(kind)} ({MARK}), so nothing in it was "
            "removed; remove it by hand if it is yours"
        )
    stayed = []
    for at, folders, names in os.walk(folder, topdown=False):
        removed = False
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(at, f)))]:
            path = os.path.join(at, name)
            within = os.path.relpath(path, folder).replace(os.sep, "/")
            if within in (MARK, LOCK):
                continue
            if re.fullmatch(pattern, within, re.DOTALL):
                os.unlink(path)
                removed = True
            else:
                stayed.append(within)
        if at != folder and (removed or re.fullmatch(pattern, os.path.relpath(at, folder) + "/")):
            with contextlib.suppress(OSError):
                os.rmdir(at)
    return sorted(stayed)


def discard(folder: str | os.PathLike, kind: str, pattern: str) -> list[str]:
    """Removes the files of a marked folder like `remove`, and the folder itself if it is empty.

    Args:
      folder: a folder that `claim` marked.
      kind: the kind that its marker file must contain.
      pattern: regular expression of the paths to remove, as for `remove`.

    Returns:
      Paths within the folder of all files that were kept.

    Raises:
      ValueError: the folder has no such marker; nothing was removed.
    """
    stayed = remove(folder, kind, pattern)
    if set(os.listdir(folder)) <= {MARK, LOCK}:
        for name in (LOCK, MARK):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    return stayed
