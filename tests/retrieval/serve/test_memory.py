"""Memory that is given back after the start."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from retrieval.serve import memory

SMAPS = """\
1000-3000 r-xp 00000000 08:01 11                         /lib/code.so
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
3000-4000 r--p 00002000 08:01 11                         /lib/relocated.so
Anonymous:             4 kB
4000-5000 rw-p 00003000 08:01 11                         /lib/data.so
Anonymous:             0 kB
5000-6000 r--s 00000000 08:01 12                         /shared
Anonymous:             0 kB
6000-7000 r--p 00000000 00:00 0
Anonymous:             0 kB
7000-8000 r--p 00000000 08:01 13                         /lib/a name.so (deleted)
Anonymous:             0 kB
8000-9000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
"""


def test_only_private_pages_of_files_that_nobody_changed_are_given_back():
    assert list(memory.unchanged(SMAPS)) == [(0x1000, 0x3000), (0x7000, 0x8000)]


HEAPS = """
import ctypes, threading
from retrieval.serve import memory
{call}
gate = threading.Barrier(4)
def work():
    kept = bytearray(50_000)
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for step in (threading.Thread.start, threading.Thread.join):
    for thread in threads:
        step(thread)
c = ctypes.CDLL(None)
c.malloc_info(0, ctypes.c_void_p.in_dll(c, "stdout"))
c.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_threads_share_one_heap():
    def heaps(call):
        command = [sys.executable, "-c", HEAPS.format(call=call)]
        return subprocess.run(command, capture_output=True, check=True).stdout.count(b"<heap nr")

    assert heaps("memory.one_heap()") == 1 < heaps("")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_libraries_work_on_after_their_pages_are_given_back(shop):
    folder, embedder = shop

    def of_files():
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))

    path = str(folder / "images/3-0.png")
    before, expected = of_files(), embedder.embed([path])
    memory.release()
    assert of_files() < before / 2
    np.testing.assert_array_equal(embedder.embed([path]), expected)
