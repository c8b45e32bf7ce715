"""The place of a store's files: a folder, or objects behind an fsspec URL, with the same interface.

`s3://bucket/store`, `gs://…` and `memory://…` need the extra `[storage]`; `file://` is a folder.
Files that decide a race, commits and manifests, are written by `create`: a hard link in a folder, a
conditional put in object storage. Both create a complete file, and only if it does not exist.
"""

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import IO

from trainer import files

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


def at(folder: str | os.PathLike) -> "Folder | Bucket":
    """The place for a path or a URL."""
    found = _URL.fullmatch(os.fspath(folder))
    if not found:
        return Folder(os.fspath(folder))
    return Folder(found[2]) if found[1] == "file" else Bucket(found[0])


def is_remote(folder: str | os.PathLike) -> bool:
    """Whether a path is the URL of objects, which have neither locks nor memory maps."""
    return isinstance(at(folder), Bucket)


class Folder:
    """A folder on a local or network disk."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        """The path at which a file can be read, which need not exist."""
        return os.path.join(self.folder, name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(self.path(name))

    def names(self, below: str = "") -> list[str]:
        """Names of the files in the folder, or in a folder within it."""
        folder = self.path(below) if below else self.folder
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def claim(self, kind: str) -> None:
        """Like `files.claim`; another process may claim the folder for the same store meanwhile."""
        try:
            files.claim(self.folder, kind)
        except ValueError:
            if files.kind_of(self.folder) != kind:
                raise

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO]:
        """Opens a new file for bytes; it is published when the block ends."""
        with files.published(self.path(name)) as out:
            yield out

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file if there is none of that name; returns whether it was written."""
        path = self.path(name)
        folder, base = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", f".{base}.", folder)
        try:
            with open(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(temporary, 0o644)
            return _linked(temporary, path, data)
        except OSError as error:
            error.filename = error.filename or path
            raise
        finally:
            os.unlink(temporary)

    def remove(self, names: list[str]) -> None:
        """Removes files; missing ones are ignored."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))


def _linked(temporary, path, data):
    """Gives a file its name if the name is free; returns whether it was."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK):
            raise
        try:  # a disk without hard links
            with open(path, "xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
        except FileExistsError:
            return False
    return True


class Bucket:
    """Objects behind an fsspec URL. Objects that are read are copied into the cache folder."""

    def __init__(self, url: str) -> None:
        from metriclearn.datasets.glyphs import cache_folder

        try:
            import fsspec
        except ImportError:
            raise ValueError(f"{url}: needs fsspec: pip install 'prototrain[storage]'") from None
        self.url = url.rstrip("/")
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url}: cannot be opened: {_first_line(error)}") from None
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._cache = os.path.join(cache_folder(), "stores", digest)

    @contextlib.contextmanager
    def _named(self, name=""):
        """Turns the different errors of storage services into an OSError."""
        try:
            yield
        except ValueError:
            raise
        except Exception as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise OSError(number, _first_line(error), f"{self.url}/{name}") from error

    def _at(self, name):
        return f"{self._root}/{name}" if name else self._root

    def path(self, name: str) -> str:
        """The path of a local copy; the file does not exist if there is no object."""
        target = os.path.join(self._cache, name)
        # Committed files never change; the manifest does.
        if name.endswith(".json") or not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with self._named(name):
                self._system.invalidate_cache()
                if not self._system.exists(self._at(name)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(target)
                    return target
            with self._named(name), files.published(target) as out:
                self._system.get_file(self._at(name), out.name)
        return target

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        with self._named(name):
            self._system.invalidate_cache()
            return self._system.exists(self._at(name))

    def names(self, below: str = "") -> list[str]:
        """Names of the objects, or of those below a prefix."""
        with self._named(below):
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._at(below), detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def claim(self, kind: str) -> None:
        """Marks the prefix as ours; ValueError if it contains something else."""
        inside = self.names()
        if not inside:  # the marker is written first, even if several processes start at once
            self.create(files.MARK, b'{\n "kind": "%s"\n}\n' % kind.encode())
        if (
            not self.exists(files.MARK)
            or files.kind_of(os.path.dirname(self.path(files.MARK))) != kind
        ):
            what = next((name for name in inside if name != files.MARK), files.MARK)
            raise ValueError(
                f"{self.url}: holds {what!r} and is not a {kind}; name an empty prefix"
            )

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO]:
        """Opens a file for bytes that becomes an object when the block ends."""
        with tempfile.NamedTemporaryFile(prefix="prototrain-", suffix=".tmp") as out:
            yield out
            out.flush()
            with self._named(name):
                self._system.put_file(out.name, self._at(name))

    def create(self, name: str, data: bytes) -> bool:
        """Writes an object if there is none of that name; returns whether it was written."""
        with self._named(name):
            try:
                self._system.pipe_file(self._at(name), data, mode="create")
            except Exception:  # the error for an existing object differs between services
                self._system.invalidate_cache()
                if not self._system.exists(self._at(name)):
                    raise
                # It is ours if the answer to a first attempt was lost and the client tried again.
                return self._system.cat_file(self._at(name)) == data
            # Some file systems ignore the mode, or check and write separately: read what is there.
            self._system.invalidate_cache()
            return self._system.cat_file(self._at(name)) == data

    def remove(self, names: list[str]) -> None:
        """Removes objects; missing ones are ignored."""
        for name in names:
            with self._named(name), contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._at(name))


def _first_line(error):
    return (str(error).splitlines() or [""])[0] or type(error).__name__
