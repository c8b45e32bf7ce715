"""Reads PyTorch's weight files without PyTorch and without trusting them.

A `.pth` is a pickle: a program for Python's unpickler, which can call functions, set attributes and
hash arbitrary objects. Here a small interpreter runs only the operations that build a dict of
tensors, in time and memory proportional to the file. It refuses everything else and calls nothing.
"""

import math
import os
import stat
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# Start of a file of torch.save before 1.6.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

OPERATIONS = 1 << 21  # maximum per pickle; a tensor takes about 40
TEXT = 1 << 12  # maximum bytes of a name
DIMENSIONS = 32
SHARING = 4  # maximum size of all tensors relative to the file: some share their values


class _Unsafe(ValueError):
    """Why a file is refused."""


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Args:
      path: a file written by `torch.save(module.state_dict(), path)`, in the zip format or the
        older format.

    Returns:
      {name: array}.

    Raises:
      ValueError: the file is damaged, contains something other than named tensors, or requests more
        than rebuilding tensors; the error names the file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _Unsafe("it is not a regular file")
        with open(path, "rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            tensors = read(file, status.st_size)
        if not isinstance(tensors, dict):
            raise _Unsafe(f"it contains a {type(tensors).__name__}, not a state dict")
        left, arrays = SHARING * status.st_size, {}
        for name, tensor in tensors.items():
            arrays[str(name)] = _array(name, tensor, left)
            left -= arrays[str(name)].nbytes
        return arrays
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or "it ends too early"  # names may contain line ends
        raise ValueError(f"{path}: not PyTorch weights that can be read safely: {reason}") from None


# Errors for a damaged file or zip archive; none of these is a bug of this program.
_DAMAGE = (
    ValueError, zipfile.BadZipFile, struct.error, EOFError, TypeError, KeyError, IndexError,
    NotImplementedError, OverflowError, MemoryError, RuntimeError,
)  # fmt: skip


class _Storage:
    """Flat values of which tensors are views; `data` is set when the bytes are read."""

    def __init__(self, dtype, count):
        self.dtype, self.count, self.data = np.dtype(dtype), count, None

    @property
    def nbytes(self):
        return self.count * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A view of a storage, its offset and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Global(NamedTuple):
    """A function or class named by a pickle; it is never imported."""

    module: str
    name: str


# ---------------------------------------------------------------------------- the pickle

_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
_TEXTS = {b"X": "<I", b"\x8c": "<B", b"U": "<B", b"T": "<I"}
_PUTS, _GETS = {b"q": "<B", b"r": "<I"}, {b"h": "<B", b"j": "<I"}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}


def unpickle(file: BinaryIO, storages: dict) -> Any:
    """Runs a pickle that builds dicts, lists and tuples of tensors, text and numbers.

    Args:
      file: a file positioned at the start of the pickle; afterwards at its end.
      storages: {key: _Storage}, to which its storages are added.

    Raises:
      _Unsafe, and the other errors of `_DAMAGE`: another operation, or the file is damaged.
    """
    stack, marks, memo = [], [], {}

    def pop(count):
        if count > len(stack) - (marks[-1] if marks else 0):
            raise _Unsafe("it is damaged")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def pop_marked():
        start = marks[-1]
        items = pop(len(stack) - start)
        marks.pop()
        return items

    def put(items):
        if not isinstance(stack[-1], dict):
            raise _Unsafe("it is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a tuple can take forever
                raise _Unsafe(f"a {type(key).__name__} is the name of a tensor")
            stack[-1][key] = value

    def extend(items):
        if not isinstance(stack[-1], list):
            raise _Unsafe("it is damaged")
        stack[-1].extend(items)

    for _ in range(OPERATIONS):
        op = file.read(1)
        if op in _NUMBERS:
            stack.append(_number(file, _NUMBERS[op]))
        elif op in _TEXTS:
            stack.append(_text(file, _number(file, _TEXTS[op])))
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == b"\x8a":  # LONG1
            stack.append(int.from_bytes(_bytes(file, _number(file, "<B")), "little", signed=True))
        elif op in _PUTS:
            memo[_number(file, _PUTS[op])] = stack[-1]
        elif op == b"\x94":  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif op in _GETS:
            stack.append(memo[_number(file, _GETS[op])])
        elif op in _TUPLES:
            stack.append(tuple(pop(_TUPLES[op])))
        elif op == b"(":
            marks.append(len(stack))
        elif op == b"t":
            stack.append(tuple(pop_marked()))
        elif op == b"}":
            stack.append({})
        elif op == b"]":
            stack.append([])
        elif op == b"s":
            put(pop(2))
        elif op == b"u":
            put(pop_marked())
        elif op == b"a":
            extend(pop(1))
        elif op == b"e":
            extend(pop_marked())
        elif op == b"c":
            stack.append(_Global(_line(file), _line(file)))
        elif op == b"\x93":  # STACK_GLOBAL
            stack.append(_Global(*(_text_of(item) for item in pop(2))))
        elif op == b"R":
            stack.append(_called(*pop(2)))
        elif op == b"Q":
            stack.append(_storage(*pop(1), storages))
        elif op == b"b":  # BUILD: PyTorch stores versions of modules beside the dict
            pop(1)
            if not isinstance(stack[-1], dict):
                raise _Unsafe("it sets attributes, which no tensor needs")
        elif op == b"\x80":  # PROTO
            _bytes(file, 1)
        elif op == b"\x95":  # FRAME
            _bytes(file, 8)
        elif op == b".":
            return pop(1)[0]
        else:
            raise _Unsafe(f"it contains the operation {op!r}, which no tensor needs" if op else "")
    raise _Unsafe(f"it has more than {OPERATIONS:,} operations")


def _bytes(file, count):
    data = file.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _number(file, form):
    return struct.unpack(form, _bytes(file, struct.calcsize(form)))[0]


def _text(file, size):
    if size > TEXT:
        raise _Unsafe(f"it contains a name of {size:,} bytes")
    return _bytes(file, size).decode()


def _line(file):
    return file.readline(TEXT).decode().removesuffix("\n")


def _text_of(value):
    if not isinstance(value, str):
        raise _Unsafe(f"a {type(value).__name__} names a function")
    return value


def _called(function, arguments):
    """The result of a call that rebuilds a tensor, without calling it."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Unsafe("it calls something that is not a function")
    module, name = function
    if (module, name) == ("collections", "OrderedDict") and not arguments:
        return {}
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return _Tensor(*arguments[:4])
    if module == "torch._utils" and name == "_rebuild_parameter":
        return arguments[0]
    raise _Unsafe(f"it requests {module[:80]}.{name[:80]}, which no tensor needs")


def _storage(pid, storages):
    kind, storage_type, key, _, count = pid[:5]
    known = isinstance(storage_type, _Global) and storage_type.module in ("torch", "torch.storage")
    if kind != "storage" or not known or storage_type.name not in _DTYPES:
        raise _Unsafe("it requests something other than a storage of numbers")
    if not isinstance(key, str | int) or type(count) is not int or not 0 <= count < 1 << 40:
        raise _Unsafe("a storage has no name or size")
    return storages.setdefault(key, _Storage(_DTYPES[storage_type.name], count))


# ---------------------------------------------------------------------------- the file


def _read_zip(file, size):
    storages = {}
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise _Unsafe("it contains no data.pkl")
        base = pickles[0].removesuffix("data.pkl")
        if base + "byteorder" in entries and _stored(archive, entries, base + "byteorder", 6) != (
            b"little"
        ):
            raise _Unsafe("its numbers are big-endian")
        with _opened(archive, entries, pickles[0]) as data:
            tensors = unpickle(data, storages)
        _check_sizes(storages, size)
        for key, storage in storages.items():
            storage.data = _stored(archive, entries, f"{base}data/{key}", storage.nbytes)
    return tensors


def _opened(archive, entries, name):
    if entries[name].compress_type != zipfile.ZIP_STORED:  # torch.save does not compress
        raise _Unsafe(f"{name} is compressed")
    return archive.open(entries[name])


def _stored(archive, entries, name, size):
    if entries[name].file_size != size:
        raise _Unsafe(f"{name} does not have {size} bytes")
    with _opened(archive, entries, name) as data:
        return data.read()


def _read_legacy(file, size):
    storages = {}
    if [unpickle(file, storages) for _ in range(2)] != [_MAGIC, _PROTOCOL]:
        raise _Unsafe("it does not start like a file of torch.save")
    unpickle(file, storages)  # sizes of C types on the writing machine
    tensors = unpickle(file, storages)
    keys = unpickle(file, storages)
    _check_sizes(storages, size)
    for key in keys:
        storage = storages[key]
        if storage.data is not None or _number(file, "<q") != storage.count:
            raise _Unsafe(f"the size of storage {key} differs")
        storage.data = _bytes(file, storage.nbytes)
    return tensors


def _check_sizes(storages, size):
    if sum(storage.nbytes for storage in storages.values()) > size:
        raise _Unsafe("its storages are larger than the file")


def _array(name, tensor, most):
    """The array, of at most `most` bytes, of a tensor."""
    if not isinstance(tensor, _Tensor):
        raise _Unsafe(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    storage, offset, shape, strides = tensor
    if not (isinstance(storage, _Storage) and storage.data is not None):
        raise _Unsafe(f"{name!r} has no storage")
    if not all(isinstance(n, tuple) and len(n) <= DIMENSIONS for n in (shape, strides)):
        raise _Unsafe(f"{name!r} has no shape")
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in (offset, *shape, *strides)):
        raise _Unsafe(f"{name!r} has no sizes")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = math.prod(shape)
    # A view must be within its storage, and must not expand a few values to gigabytes.
    if count and (last >= storage.count or count > storage.count):
        raise _Unsafe(f"{name!r} reaches beyond its storage")
    if count * storage.dtype.itemsize > most:
        raise _Unsafe(f"its tensors take more than {SHARING} times the file's size")
    flat = np.frombuffer(storage.data, storage.dtype)
    steps = [s * storage.dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()
