"""Arrays of groups that follow each other, and searches in them."""

import numpy as np


def ranges(start, count):
    """Concatenation of arange(s, s + n) for every (s, n)."""
    ends = np.cumsum(count)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - count), count)


def cumulative(values, count):
    """Running sum within consecutive groups of `count` values."""
    total = np.cumsum(values)
    begin = np.cumsum(count) - count
    return total - np.repeat(total[begin] - values[begin], count) if len(values) else total


def first_place(low, high, is_behind):
    """Binary search: the first place [n] in [low, high) for which is_behind holds, else high."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = np.where(open_, (low + high) // 2, 0)
        behind = is_behind(middle)
        high = np.where(open_ & behind, middle, high)
        low = np.where(open_ & ~behind, middle + 1, low)
    return low


def joined(groups):
    """Arrays of one kind joined: [(a, b), (c, d)] -> [a + c, b + d]."""
    return [np.concatenate(parts) for parts in zip(*groups, strict=True)]


def where(mask):
    """np.nonzero of a matrix, found faster."""
    return np.divmod(np.flatnonzero(mask), max(1, mask.shape[1]))
