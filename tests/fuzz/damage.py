"""Random damage to files, for tests that what reads them names the fault and never crashes.

    PROTOTRAIN_FUZZ=1000000 pytest tests/fuzz      # inputs, about, of all targets; default 10,000
    PROTOTRAIN_FUZZ_FIRST=5000000 ...              # others

Each input is made from its target and its number alone; a failure prints how to repeat it. A
hundredth of all is the unit that each target takes one or several of.
"""

import contextlib
import os
import shutil
import signal
import warnings

import numpy as np

UNIT = max(1, int(os.environ.get("PROTOTRAIN_FUZZ", "10000")) // 100)
FIRST = int(os.environ.get("PROTOTRAIN_FUZZ_FIRST", "0"))
SECONDS = 30  # that one input may take
# Bytes that mean something in one of the formats.
TOKENS = [
    b"", b"\0", b"\n", b"\r", b"\r\n", b'"', b'""', b",", b";", b"\t", b"=", b"|", b"\\", b"..",
    b"/", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xe9", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff", b"\x80\x00", b"path", b"label", b"split", b"99999999999999999999", b"-1",
    b"1e9", b"nan", b"\xff\xd8", b"\xff\xd9", b"IDAT", b"IEND", b"(", b"t", b"}", b"R", b"b", b"Q",
    b"null", b"true", b"{}", b"[]", b"<f4", b"|O8", b"(1,)", b"0", b"\xf0\x9f\x99\x82", b" ",
]  # fmt: skip


def numbers(units=1):
    """The numbers of a target's inputs."""
    return range(FIRST, FIRST + max(1, round(units * UNIT)))


def seeded(target, number):
    """The generator of an input."""
    return np.random.default_rng([sum(target.encode()), number])


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with one to five faults: turned, cut, copied, moved, overwritten or inserted."""
    data = bytearray(data)
    for _ in range(random.integers(1, 6)):
        # Half of them near the start, where the headers are.
        end = len(data) if random.random() < 0.5 else min(len(data), 64)
        at, length = int(random.integers(0, end + 1)), int(random.integers(0, 32))
        kind = random.integers(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[int(random.integers(0, len(data) + 1)) :][:length]
        elif kind == 3:
            data[at : at + length] = random.bytes(length)
        elif kind == 4:
            token = TOKENS[random.integers(len(TOKENS))]
            data[at : at + int(random.integers(0, len(token) + 1))] = token
        elif kind == 5:
            data[at : at + length] = bytes([int(random.choice([0, 255]))]) * length
        elif kind == 6:
            data[at:at] = str(random.integers(-(2**40), 2**40)).encode()
        elif kind == 7:
            data[at : at + 1] = random.bytes(1)
        elif random.random() < 0.3:
            del data[at:]
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
        path.write_bytes(mutated(path.read_bytes(), random))
    return path


def copy(source, target):
    """A fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


@contextlib.contextmanager
def example(target, number):
    """Prints the number of an input that fails, or that takes too long."""

    def late(*_):
        raise AssertionError(f"takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damaged notes
            yield
    except BaseException:
        print(f"\ninput {number} of {target}: PROTOTRAIN_FUZZ=100 PROTOTRAIN_FUZZ_FIRST={number}")
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_or_refused(function, name):
    """What the function returns, or None where it raises one line that names the file."""
    try:
        return function()
    except ValueError as error:
        message = str(error)
        assert str(name) in message and len(message.splitlines()) == 1, message
        return None
