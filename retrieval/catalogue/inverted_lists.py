"""Inverted lists in a file, for an index larger than memory."""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile

import faiss
import numpy as np

LISTS = "lists.ivfdata"
ENDS = (".faiss", LISTS)  # names of the files of vectors


class Stacked:
    """Several indexes of one training, searched as one: the nearest of each part are merged.

    Attributes:
      parts: `faiss.IndexIVF`s; ids are rows of the whole index.
      d: dimensions.
      ntotal: number of rows of the whole index.
    """

    def __init__(self, parts):
        self.parts = parts
        self.d, self.ntotal = parts[0].d, max(part.ntotal for part in parts)

    def search(self, queries, k, params=None):
        """(scores float32 [Q, k], ids int64 [Q, k]), as FAISS returns them."""
        found = [part.search(queries, k, params=params) for part in self.parts]
        scores, rows = (np.hstack(arrays) for arrays in zip(*found, strict=True))
        nearer = -scores if self.parts[0].metric_type == faiss.METRIC_INNER_PRODUCT else scores
        best = np.argsort(nearer, axis=1, kind="stable")[:, :k]
        return tuple(np.take_along_axis(array, best, 1) for array in (scores, rows))

    def reconstruct_n(self, row, count, out):
        """Fills `out` with the vectors of consecutive rows, from the parts that contain them."""
        for part in self.parts:
            part.ntotal = self.ntotal  # FAISS compares the row with it
            part.reconstruct_n(row, count, out)


def saved(index):
    """The index to write; for a stack, whose parts have files, the trained empty index."""
    return _empty(index.parts[0]) if isinstance(index, Stacked) else index


def write(index, blocks, folder, first=None):
    """Returns an index with the lists of `index` and of new blocks in a file.

    Args:
      index: a trained `faiss.IndexIVF`, empty or not; or a `Stacked`.
      blocks: arrays [n, D] of further rows. Each is written to a file first, so that only one is in
        memory at a time.
      folder: folder for `LISTS`.
      first: id of the first new row; None: the number of rows of `index`.

    Raises:
      OSError: the disk is full.
    """
    whole = [faiss.downcast_index(part) for part in getattr(index, "parts", [index])]
    given = whole[0]
    start = index.ntotal if first is None else first
    count = sum(part.invlists.compute_ntotal() for part in whole)
    lists = faiss.InvertedListsPtrVector()
    for part in whole:
        lists.push_back(part.invlists)
    kept = []  # FAISS holds no references to the merged lists
    with tempfile.TemporaryDirectory(dir=folder, prefix=".blocks-") as waiting:
        for number, block in enumerate(blocks):
            part = _empty(given)
            part.add_with_ids(block, np.arange(start, start + len(block)))
            start, count = start + len(block), count + len(block)
            path = os.path.join(waiting, f"{number}.faiss")
            faiss.write_index(part, path)
            kept.append(faiss.read_index(path, faiss.IO_FLAG_MMAP))
            lists.push_back(kept[-1].invlists)
        target = os.path.join(folder, LISTS)
        need = count * (given.code_size + 8)
        if shutil.disk_usage(folder).free < need:  # FAISS maps the file: else a signal
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {need} bytes", target)
        merged = faiss.OnDiskInvertedLists(given.nlist, given.code_size, target)
        with _quiet_stdout():
            merged.merge_from_multiple(lists.data(), lists.size(), False)
        del kept
    result = _empty(given)
    result.replace_invlists(merged, True)
    merged.this.disown()  # now owned by the index
    result.ntotal = start
    return result


def read(path):
    """Reads an index whose lists are in the file beside it, even if the folder was moved."""
    with _quiet_stdout():
        return faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR)


@contextlib.contextmanager
def _quiet_stdout():
    """Suppresses FAISS's messages on stdout, where a search prints its results."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _empty(index):
    """A copy of a trained IVF index without its lists."""
    lists, none = index.invlists, faiss.ArrayInvertedLists(index.nlist, index.code_size)
    index.invlists = none
    try:
        copy = faiss.clone_index(index)
    finally:
        index.invlists = lists
    copy.ntotal = 0
    return copy
