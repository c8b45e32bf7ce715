"""Random damage to files, for tests that what reads them names the fault and never crashes.

The number of inputs per target is `PROTOTRAIN_FUZZ` (default 60); each has a seed, which a failure
prints.
"""

import os
import shutil

import numpy as np

COUNT = int(os.environ.get("PROTOTRAIN_FUZZ", "60"))
SEEDS = range(COUNT)


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with one to three faults: bits turned, parts cut, copied, moved or overwritten."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        size = len(data)
        start = int(random.integers(0, size + 1))
        length = int(min(size - start, random.geometric(0.2)))
        kind = random.integers(0, 7)
        if kind == 0 and size:
            data[start % size] ^= 1 << int(random.integers(0, 8))
        elif kind == 1:
            del data[start:]
        elif kind == 2:
            del data[start : start + length]
        elif kind == 3:
            data[start:start] = random.bytes(length + 1)
        elif kind == 4:
            data[start : start + length] = bytes([int(random.choice([0, 255]))]) * length
        elif kind == 5:
            data[start:start] = data[start : start + length]
        else:
            data[start : start + length] = str(random.integers(-(2**40), 2**40)).encode()
    return bytes(data)


def damage_one(folder, random, skip=()):
    """Damages, empties or removes one file below a folder; returns its path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in skip)
    path = paths[random.integers(0, len(paths))]
    kind = random.integers(0, 8)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(b"")
    else:
        path.write_bytes(damaged(path.read_bytes(), random))
    return path


def copy(source, target):
    """A fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
