"""Processor time of a cold search: `prototrain search photo.jpg` from its start to its end.

    python -m benchmarks.search [--quick] [--items=10000] [--rounds=7]

Each search is a process of its own over an index that carries EfficientNet-Lite0: interpreter,
imports, model, photo and answer. All its threads count.
"""

import os
import resource
import subprocess
import sys
import tempfile

from benchmarks import figures, serve, timing


def measure(quick=False, items=10_000, rounds=7):
    items, rounds = (1000, 3) if quick else (items, rounds)
    with tempfile.TemporaryDirectory() as folder:
        index = serve.build(folder, items)
        photo = os.path.join(folder, "photo.jpg")
        with open(photo, "wb") as file:
            file.write(serve.photos("", 1)[0])
        program = [sys.executable, "-m", "retrieval.search", photo, f"--index={index}"]

        def once():
            before = _used()
            elapsed.append(timing.seconds(lambda: subprocess.run(
                program, check=True, cwd=serve.ROOT, stdout=subprocess.DEVNULL
            )))  # fmt: skip
            return _used() - before

        elapsed = []
        (busy,) = timing.alternate([once], rounds)
    (row,) = figures.REACH["search"]
    yield figures.figure(row, busy, "s", f"{items:,} items; {sorted(elapsed)[rounds // 2]:.1f} s")


def _used():
    """Processor seconds of the processes that this one ran."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    figures.program(measure)
