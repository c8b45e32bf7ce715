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


def write(index, blocks, folder):
    """Returns an index whose lists, those of `index` and of new blocks, are in a file.

    Args:
      index: a trained `faiss.IndexIVF`, empty or with lists of its own.
      blocks: arrays [n, D] of further rows. Each becomes a file first, so that one is in memory at
        a time.
      folder: where to write `LISTS`.

    Raises:
      OSError: the disk is too full.
    """
    given = faiss.downcast_index(index)
    start = index.ntotal
    lists = faiss.InvertedListsPtrVector()
    lists.push_back(given.invlists)
    kept = []  # FAISS holds no reference to what it merges
    with tempfile.TemporaryDirectory(dir=folder, prefix=".blocks-") as waiting:
        for number, block in enumerate(blocks):
            part = _empty(given)
            part.add_with_ids(block, np.arange(start, start + len(block)))
            start += len(block)
            path = os.path.join(waiting, f"{number}.faiss")
            faiss.write_index(part, path)
            kept.append(faiss.read_index(path, faiss.IO_FLAG_MMAP))
            lists.push_back(kept[-1].invlists)
        target = os.path.join(folder, LISTS)
        need = start * (given.code_size + 8)
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
