"""Inverted lists in a file, for an index above the memory."""

import os
import shutil

import faiss
import numpy as np

LISTS = "lists.ivfdata"


def write(index, blocks, folder):
    """An index whose lists, those of `index` and of new blocks, are in folder/lists.ivfdata.

    index: a trained `faiss.IndexIVF`, empty or with lists of its own. blocks: arrays [n, D] of
    further rows, each of which becomes a file first, so that one is in memory at a time.
    """
    given = faiss.downcast_index(index)
    start, waiting = index.ntotal, os.path.join(folder, "blocks")
    os.makedirs(waiting)
    lists = faiss.InvertedListsPtrVector()
    lists.push_back(given.invlists)
    kept = []  # FAISS holds no reference to what it merges
    for number, block in enumerate(blocks):
        part = _empty(given)
        part.add_with_ids(block, np.arange(start, start + len(block)))
        start += len(block)
        path = os.path.join(waiting, f"{number}.faiss")
        faiss.write_index(part, path)
        kept.append(faiss.read_index(path, faiss.IO_FLAG_MMAP))
        lists.push_back(kept[-1].invlists)
    target = os.path.join(folder, LISTS)
    merged = faiss.OnDiskInvertedLists(given.nlist, given.code_size, target)
    merged.merge_from_multiple(lists.data(), lists.size(), False)
    result = _empty(given)
    result.replace_invlists(merged, True)
    merged.this.disown()  # the index owns it now
    result.ntotal = start
    del kept
    shutil.rmtree(waiting)
    return result


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
