"""Inverted lists in a file, for an index above the memory."""

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
ENDS = (".faiss", LISTS)  # of the files that hold vectors


class Stacked:
    """Several indexes of one training, searched as one: the nearest of each part are merged.

    Attributes:
      parts: `faiss.IndexIVF`s, whose ids are rows of the whole.
      d: dimensions.
      ntotal: rows of the whole.
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
        """Fills `out` with the vectors of consecutive rows, each by the part that has it."""
        for part in self.parts:
            part.ntotal = self.ntotal  # which FAISS compares the row with
            part.reconstruct_n(row, count, out)


def saved(index):
    """What is written of an index; of a stack, whose parts have files, what was trained."""
    return _empty(index.parts[0]) if isinstance(index, Stacked) else index


def write(index, blocks, folder, first=None):
    """Returns an index whose lists, those of `index` and of new blocks, are in a file.

    Args:
      index: a trained `faiss.IndexIVF`, empty or with lists of its own; or a `Stacked`.
      blocks: arrays [n, D] of further rows. Each becomes a file first, so that one is in memory at
        a time.
      folder: where to write `LISTS`.
      first: id of the first new row; the number of rows of `index` if None.

    Raises:
      OSError: the disk is too full.
    """
    whole = [faiss.downcast_index(part) for part in getattr(index, "parts", [index])]
    given = whole[0]
    start = index.ntotal if first is None else first
    count = sum(part.invlists.compute_ntotal() for part in whole)
    lists = faiss.InvertedListsPtrVector()
    for part in whole:
        lists.push_back(part.invlists)
    kept = []  # FAISS holds no reference to what it merges
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
        if shutil.disk_usage(folder).free < need:  # FAISS maps the file: a signal, not an error
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {need} bytes", target)
        merged = faiss.OnDiskInvertedLists(given.nlist, given.code_size, target)
        with _quiet_stdout():
            merged.merge_from_multiple(lists.data(), lists.size(), False)
        del kept
    result = _empty(given)
    result.replace_invlists(merged, True)
    merged.this.disown()  # the index owns it now
    result.ntotal = start
    return result


def read(path):
    """Reads an index whose lists are in the file beside it, also after the folder was moved."""
    with _quiet_stdout():
        return faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR)


@contextlib.contextmanager
def _quiet_stdout():
    """Suppresses FAISS's messages on stdout, where a search prints its answers."""
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
