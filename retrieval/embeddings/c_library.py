"""Runs a SavedModel with TensorFlow's C library, without importing TensorFlow's Python package.

The import takes 4 s of processor time; loading the C library of the same wheel takes 0.3 s and
gives the same numbers. A search of one photo thus takes 2 s instead of 8.

Source: the functions and their types are those of `tensorflow/c/c_api.h` and
`tensorflow/c/tf_tstring.h`, which TensorFlow keeps stable.
"""

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np

from trainer import quiet

# Values of TF_DataType.
FLOAT, INT32, UINT8, STRING = 1, 3, 4, 7
TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.int32): INT32, np.dtype(np.uint8): UINT8}
STRING_BYTES = 24  # size of a TF_TString


class _Output(Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


_OUTPUTS, _TENSORS = POINTER(_Output), POINTER(c_void_p)
# {function: (result, arguments)}
_FUNCTIONS: dict[str, tuple[Any, tuple]] = {
    "TF_NewStatus": (c_void_p, ()),
    "TF_DeleteStatus": (None, (c_void_p,)),
    "TF_GetCode": (c_int, (c_void_p,)),
    "TF_Message": (c_char_p, (c_void_p,)),
    "TF_NewGraph": (c_void_p, ()),
    "TF_DeleteGraph": (None, (c_void_p,)),
    "TF_GraphOperationByName": (c_void_p, (c_void_p, c_char_p)),
    "TF_NewSessionOptions": (c_void_p, ()),
    "TF_DeleteSessionOptions": (None, (c_void_p,)),
    "TF_SetConfig": (None, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        (c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p),
    ),
    "TF_CloseSession": (None, (c_void_p, c_void_p)),
    "TF_DeleteSession": (None, (c_void_p, c_void_p)),
    "TF_SessionRun": (
        None,
        (
            *(c_void_p, c_void_p, _OUTPUTS, _TENSORS, c_int, _OUTPUTS, _TENSORS, c_int),
            *(c_void_p, c_int, c_void_p, c_void_p),
        ),
    ),
    "TF_AllocateTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_size_t)),
    "TF_DeleteTensor": (None, (c_void_p,)),
    "TF_TensorData": (c_void_p, (c_void_p,)),
    "TF_TensorType": (c_int, (c_void_p,)),
    "TF_NumDims": (c_int, (c_void_p,)),
    "TF_Dim": (c_int64, (c_void_p, c_int)),
    "TF_StringInit": (None, (c_void_p,)),
    "TF_StringCopy": (None, (c_void_p, c_char_p, c_size_t)),
    "TF_StringDealloc": (None, (c_void_p,)),
}


class Unavailable(Exception):
    """TensorFlow's C library is not at its place in the wheel, or lacks a function."""


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """Loads the C library once; raises `Unavailable` if there is none."""
    found = importlib.util.find_spec("tensorflow")
    folder = os.path.dirname(found.origin) if found and found.origin else ""
    names = ("libtensorflow_cc.so.2", "libtensorflow_cc.2.dylib")
    paths = [os.path.join(folder, name) for name in names]
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        raise Unavailable(f"none of {', '.join(paths)} exists")
    # Errors only: the error of an operation is logged as a warning and also returned.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with quiet.filtered_stderr():
            loaded = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{path}: {error}") from None
    return loaded


class _Status:
    """A TF_Status for one call; RuntimeError with TensorFlow's message if it is not OK."""

    def __enter__(self):
        self.status = library().TF_NewStatus()
        return self.status

    def __exit__(self, kind, *_):
        failed = library().TF_GetCode(self.status)
        said = library().TF_Message(self.status).decode(errors="replace")
        library().TF_DeleteStatus(self.status)
        if failed and kind is None:
            raise RuntimeError(said)


class Session:
    """A loaded SavedModel. Safe to use from several threads.

    It has the part of the interface of `tf.compat.v1.Session` that an `Embedder` needs.

    Args:
      folder: the SavedModel, with the tag `serve`.
      threads: number of TensorFlow's threads, 0 for all cores. With 1, a call runs only in its
        caller's thread, so that calls from several threads run side by side.

    Raises:
      Unavailable: there is no C library.
      RuntimeError: the SavedModel cannot be loaded.
    """

    def __init__(self, folder: str, threads: int = 0) -> None:
        c, self._session = library(), None
        options, self._graph = c.TF_NewSessionOptions(), c.TF_NewGraph()
        tags = (c_char_p * 1)(b"serve")
        config = _config(threads)
        try:
            with _Status() as status:
                c.TF_SetConfig(options, config, len(config), status)
            with quiet.filtered_stderr(), _Status() as status:
                self._session = c.TF_LoadSessionFromSavedModel(
                    options, None, os.fsencode(folder), tags, 1, self._graph, None, status
                )
        except RuntimeError:
            self.close()
            raise
        finally:
            c.TF_DeleteSessionOptions(options)

    def make_callable(self, fetch: str, feeds: Sequence[str]) -> Callable[..., np.ndarray]:
        """Returns a function that computes a tensor from the values of `feeds`, arrays or bytes.

        Args:
          fetch: name of a tensor of uint8, int32 or float32.
          feeds: names of the tensors to feed, of uint8, int32, float32 or one string.
        """
        places, wanted = [self._place(name) for name in feeds], (_Output * 1)(self._place(fetch))
        given = (_Output * len(places))(*places)

        def run(*values: Any) -> np.ndarray:
            c, results = library(), (c_void_p * 1)()
            tensors: list = []
            try:
                tensors += map(_tensor, values)
                fed = (c_void_p * len(tensors))(*tensors)
                with _Status() as status:
                    c.TF_SessionRun(
                        self._session, None, given, fed, len(tensors), wanted, results, 1,
                        None, 0, None, status,
                    )  # fmt: skip
                return _array(results[0])
            finally:
                for value, tensor in zip(values, tensors, strict=False):
                    if isinstance(value, bytes):
                        c.TF_StringDealloc(c.TF_TensorData(tensor))
                for tensor in filter(None, [*tensors, results[0]]):
                    c.TF_DeleteTensor(tensor)

        return run

    def _place(self, name):
        operation, _, index = name.partition(":")
        found = library().TF_GraphOperationByName(self._graph, operation.encode())
        if not found:
            raise RuntimeError(f"the graph has no operation {operation!r}")
        return _Output(found, int(index or 0))

    def close(self) -> None:
        """Frees the session and its graph."""
        c, session, graph = library(), self._session, self._graph
        self._session = self._graph = None
        if session:
            with _Status() as status:
                c.TF_CloseSession(session, status)
            with _Status() as status:
                c.TF_DeleteSession(session, status)
        if graph:
            c.TF_DeleteGraph(graph)


def _config(threads):
    """A ConfigProto: fields 2 and 5 are the threads within and between operations.

    experimental.disable_output_partition_graphs keeps no copy of the graph, and of the constants in
    it, that nobody asks for.
    """
    if threads == 1:  # the caller's; experimental.disable_thread_spinning, since no others work
        return b"\x10\x01" + b"\x28" + _varint(-1) + b"\x82\x01\x04\x48\x01\x70\x01"
    return b"\x10" + _varint(threads) + b"\x28" + _varint(threads) + b"\x82\x01\x02\x70\x01"


def _varint(number):
    """A 64-bit number in the encoding of protocol buffers."""
    out, number = bytearray(), number % 2**64
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _tensor(value):
    """A TF_Tensor of bytes (a string scalar) or of an array; its owner must delete it."""
    c = library()
    if isinstance(value, bytes):
        tensor = c.TF_AllocateTensor(STRING, None, 0, STRING_BYTES)
        text = c.TF_TensorData(tensor)
        c.TF_StringInit(text)
        c.TF_StringCopy(text, value, len(value))
        return tensor
    array = np.ascontiguousarray(value)
    shape = (c_int64 * array.ndim)(*array.shape)
    tensor = c.TF_AllocateTensor(TYPES[array.dtype], shape, array.ndim, array.nbytes)
    ctypes.memmove(c.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
    return tensor


def _array(tensor):
    """A copy of the values of a TF_Tensor."""
    c = library()
    kind = c.TF_TensorType(tensor)
    dtype = next((dtype for dtype, number in TYPES.items() if number == kind), None)
    if dtype is None:
        raise RuntimeError(f"the tensor is of type {kind}, not uint8, int32 or float32")
    array = np.empty([c.TF_Dim(tensor, n) for n in range(c.TF_NumDims(tensor))], dtype)
    ctypes.memmove(array.ctypes.data, c.TF_TensorData(tensor), array.nbytes)
    return array
