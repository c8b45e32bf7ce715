"""Numbered versions of an index, of which one is current: readers see the old or the new, whole."""

import contextlib
import os
import shutil

from trainer import files

KEPT = 3  # versions


def current(folder):
    """The folder of the current version; ValueError where there is none."""
    try:
        with open(os.path.join(folder, "current"), encoding="utf-8") as text:
            name = text.read().strip()
    except OSError:
        raise ValueError(f"{folder}: holds no index; make one with retrieval.index build") from None
    version = os.path.join(folder, "versions", os.path.basename(name))
    if not name.isdigit() or not os.path.isdir(version):
        raise ValueError(f"{folder}/current: names no version of this index: {name[:40]!r}")
    return version


@contextlib.contextmanager
def following(folder):
    """Yields the folder of the next version, current once the block ends; gone on any error.

    The block writes manifest.json last: a version without it is of a writer that was killed.
    """
    versions = os.path.join(folder, "versions")
    os.makedirs(versions, exist_ok=True)
    for name in os.listdir(versions):
        if not os.path.exists(os.path.join(versions, name, "manifest.json")):
            shutil.rmtree(os.path.join(versions, name))
    known = sorted(int(name) for name in os.listdir(versions) if name.isdigit())
    name = f"{(known[-1] if known else 0) + 1:06d}"
    path = os.path.join(versions, name)
    os.makedirs(path)
    try:
        yield path
        with files.published(os.path.join(folder, "current"), "w") as out:
            out.write(name + "\n")
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, RuntimeError):  # FAISS's, of a file that it cannot write
            raise OSError(f"{path}: cannot be written: {str(error).splitlines()[-1]}") from None
        raise
    for old in known[: max(0, len(known) + 1 - KEPT)]:
        shutil.rmtree(os.path.join(versions, f"{old:06d}"), ignore_errors=True)
