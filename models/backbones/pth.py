"""PyTorch's files of weights, read without PyTorch and without trusting them.

A `.pth` is a pickle, which may name any function to call. Here only what rebuilds a dict of tensors
is known; a file that asks for anything else is refused before it is called.
"""

import collections
import io
import math
import pickle
import struct
import zipfile

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
# What torch.save wrote before 1.6, first in the file.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def load(path):
    """Reads a state dict.

    Args:
      path: a file that `torch.save(module.state_dict(), path)` wrote, in the zip format or in the
        older one.

    Returns:
      {name: NumPy array}.

    Raises:
      ValueError: naming the file, where it is damaged, holds something else than tensors by name,
        or wants anything called that does not rebuild a tensor.
    """
    try:
        tensors = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(tensors, dict):
            raise pickle.UnpicklingError(f"it holds a {type(tensors).__name__}, not a state dict")
        return {str(name): _array(name, tensor) for name, tensor in tensors.items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise ValueError(
            f"{path}: not PyTorch weights that can be read safely: {error or 'it ends too early'}"
        ) from None


# A damaged pickle stream raises nearly anything; none of these is an error of this program.
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, ValueError, TypeError,
    KeyError, IndexError, AttributeError, NotImplementedError, OverflowError, MemoryError,
    RuntimeError,
)  # fmt: skip


class _Storage:
    """The flat values that tensors are views of; `data` is set when its bytes are met."""

    def __init__(self, dtype, count):
        self.dtype, self.count, self.data = np.dtype(dtype), count, None

    @property
    def nbytes(self):
        return self.count * self.dtype.itemsize


class _Tensor(collections.namedtuple("_Tensor", "storage offset shape strides")):
    """A view of a storage, its offset and strides in values."""


def _rebuild_tensor(storage, offset, shape, strides, *unused):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *unused):
    return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storages):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs")

    def persistent_load(self, pid):
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or dtype not in _DTYPES.values() or not 0 <= count < 1 << 40:
            raise pickle.UnpicklingError(f"it asks for {kind!r}, where storages are known")
        return self._storages.setdefault(key, _Storage(dtype, count))


def _read_zip(path):
    storages = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it holds no data.pkl")
        base = pickles[0].removesuffix("data.pkl")
        if base + "byteorder" in names and archive.read(base + "byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        tensors = _Unpickler(io.BytesIO(archive.read(pickles[0])), storages).load()
        for key, storage in storages.items():
            entry = archive.getinfo(f"{base}data/{key}")
            if entry.file_size != storage.nbytes:  # before it is unpacked
                raise pickle.UnpicklingError(f"{entry.filename} has not {storage.nbytes} bytes")
            storage.data = archive.read(entry)
    return tensors


def _read_legacy(path):
    storages = {}
    with open(path, "rb") as file:
        head = [_Unpickler(file, storages).load() for _ in range(2)]
        if head != [_MAGIC, _PROTOCOL]:
            raise pickle.UnpicklingError("it does not start as torch.save starts a file")
        _Unpickler(file, storages).load()  # sizes of C types on the machine that wrote it
        tensors = _Unpickler(file, storages).load()
        for key in _Unpickler(file, storages).load():
            storage = storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            storage.data = file.read(storage.nbytes)
            if count != storage.count or len(storage.data) != storage.nbytes:
                raise pickle.UnpicklingError(f"storage {key} is cut short")
    return tensors


def _array(name, tensor):
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    storage, offset, shape, strides = tensor
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)):
        raise pickle.UnpicklingError(f"{name!r} has no sizes")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    # A view must stay inside its storage, and must not unfold a few values into gigabytes.
    if math.prod(shape) and (last >= storage.count or math.prod(shape) > storage.count):
        raise pickle.UnpicklingError(f"{name!r} reaches beyond its storage")
    flat = np.frombuffer(storage.data, storage.dtype)
    steps = [s * storage.dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()
