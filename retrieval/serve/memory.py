"""Keeps a server's memory small: one heap, and what only the start has used is given back."""

import contextlib
import ctypes
import re
from collections.abc import Iterator

ARENA_MAX = -8  # of glibc's `mallopt`
DONTNEED = 4  # of Linux's `madvise`
# A mapping in /proc/self/smaps: private, of a file, read-only, and with no page of its own.
UNCHANGED = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ \S+ +/[^\n]*\n(?:[A-Z]\w*:[^\n]*\n)*?"
    r"Anonymous: +0 kB$",
    re.MULTILINE,
)


def one_heap() -> None:
    """Lets all threads allocate in one heap, before they start: each would keep free memory of its
    own, about 15 MiB in all on two cores. Elsewhere than on glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)


def release() -> None:
    """Gives free heap and unused pages of libraries back to the system.

    Loading TensorFlow's library touches 300 MiB of its file, of which a model uses a tenth. A page
    that is needed after all is mapped again from the file. Elsewhere than on Linux with glibc this
    does nothing.
    """
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
            mappings = file.read()
        c = ctypes.CDLL(None)
        madvise, trim = c.madvise, c.malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in unchanged(mappings):
        madvise(start, end - start, DONTNEED)  # where it fails, all stays as it was


def unchanged(mappings: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of mappings whose pages are all as in their file, from smaps' text."""
    for start, end in UNCHANGED.findall(mappings):
        yield int(start, 16), int(end, 16)
