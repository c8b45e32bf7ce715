"""NumPy's .npy files of floats, memory-mapped and never unpickled."""

import os
import warnings

import numpy as np
from numpy.lib import format as npy

from trainer import files

LARGEST = 2**40  # maximum rows or columns accepted from a header


def load_array(path) -> np.ndarray:
    """A .npy array of floats, memory-mapped. It is never unpickled.

    Raises:
      ValueError: the file is not such an array, or is shorter than its header states.
    """
    files.check_regular(path)
    try:
        with open(path, "rb") as data:
            if data.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                raise ValueError(f"{path}: is not a NumPy array (.npy) written by numpy.save")
            data.seek(0)
            shape, is_fortran, dtype = _header(path, data)
            start, size = data.tell(), os.fstat(data.fileno()).st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"{path}: holds {dtype}, not floats of 16, 32 or 64 bits")
    if any(type(n) is not int or not 0 <= n <= LARGEST for n in shape) or len(shape) > 32:
        raise ValueError(f"{path}: not a NumPy array that can be read: its shape is {shape}")
    count = 1
    for n in shape:
        count *= n
    if start + count * dtype.itemsize > size:
        raise ValueError(
            f"{path}: not a NumPy array that can be read: {size} bytes are too few for its shape "
            f"{list(shape)}; the file was cut off"
        )
    if not count:
        return np.empty(shape, dtype.newbyteorder("="))
    array = np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _header(path, data):
    """(shape, whether it is in Fortran order, dtype) of an open .npy file."""
    try:
        version = npy.read_magic(data)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it has version {version[0]}.{version[1]} of the format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings():  # from the parser, for damaged text
            warnings.simplefilter("ignore")
            return read(data)
    except Exception as error:  # the header is Python text and can be damaged in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a NumPy array that can be read: {reason}") from None
