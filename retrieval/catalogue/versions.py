"""Numbered versions of an index, one of them current: readers see a complete old or new version.

INDEX/.prototrain           marks the folder as an index
INDEX/current               the number of the current version
INDEX/versions/000001/...   a version; without manifest.json, left by a killed writer
"""

import contextlib
import os
import re

from trainer import files

KIND = "index"  # the kind of folder in the marker file
KEPT = 3  # versions
LITTER = r"\.[^/]+\.tmp"  # left by a killed writer of `current`
# The files of a version named by its manifest, and all that this program writes there.
CONTENTS = (
    r"(part-\d{5}/)?(index\.faiss|lists\.ivfdata)|items\.arrow"
    r"|model/(text/)?((saved_model|fingerprint)\.pb|variables/variables\.[\w-]+|assets/[^/]+"
    r"|assets\.extra/prototrain\.json)"
)
FILES = (
    rf"({CONTENTS}|manifest\.json|part-\d{{5}}/|model/(text/)?((variables|assets|assets\.extra)/)?"
    r"|\.blocks-\w+/(\d+\.faiss)?|(model/.*)?\.[^/]+\.tmp|model/(text/)?saved_model\.pb\.tmp.*)?"
)


def current(folder):
    """Returns the folder of the current version; ValueError if there is none."""
    try:
        with open(os.path.join(folder, "current"), encoding="utf-8") as text:
            name = text.read(64).strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{folder}: {_what(folder)}; make one with `prototrain build`") from None
    version = os.path.join(folder, "versions", os.path.basename(name))
    if not re.fullmatch(r"\d{6,}", name) or not os.path.isdir(version):
        raise ValueError(f"{folder}/current: is not a version of this index: {name[:40]!r}")
    return version


def _what(folder):
    return "is not an index" if os.path.isdir(folder) else "there is no such folder"


def numbers(folder):
    """Returns the numbers of the complete versions, ascending."""
    versions = os.path.join(folder, "versions")
    names = os.listdir(versions) if os.path.isdir(versions) else []
    return sorted(
        int(name)
        for name in names
        if re.fullmatch(r"\d{6,}", name)
        and os.path.isfile(os.path.join(versions, name, "manifest.json"))
    )


def publish(folder, number):
    """Makes a complete version the current one, by one rename."""
    files.write_text(os.path.join(folder, "current"), f"{number:06d}\n")


@contextlib.contextmanager
def following(folder):
    """Yields the folder of the next version; it becomes current once the block ends.

    The block writes manifest.json last. If it fails, its files are removed (after a kill, by the
    next writer) and the current version stays. The last three versions and the current one are
    kept.
    """
    files.claim(folder, KIND)
    versions = os.path.join(folder, "versions")
    os.makedirs(versions, exist_ok=True)
    known = numbers(folder)
    files.remove(folder, KIND, LITTER)
    _remove(folder, [n for n in _all(versions) if n not in known])
    number = (max(_all(versions), default=0)) + 1
    path = os.path.join(versions, f"{number:06d}")
    os.makedirs(path)
    try:
        yield path
        files.sync(path)
        publish(folder, number)
    except BaseException as error:
        _remove(folder, [number])
        if isinstance(error, RuntimeError):  # raised by FAISS for a file that it cannot write
            raise OSError(f"{path}: cannot be written: {str(error).splitlines()[-1]}") from None
        raise
    _remove(folder, known[: max(0, len(known) + 1 - KEPT)])


def _all(versions):
    return [int(name) for name in os.listdir(versions) if re.fullmatch(r"\d{6,}", name)]


def _remove(folder, some):
    """Removes versions, but keeps files of others in their folders."""
    if some:
        names = "|".join(f"{number:06d}" for number in some)
        files.remove(folder, KIND, rf"versions/({names})/{FILES}")
