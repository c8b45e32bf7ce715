"""The training and test data of a run as a table for people."""

import numpy as np

from metriclearn.datasets.table import ProductTable

_HEADER = ("", "products", "images", "queries", "catalogue", "images per product")


def overview(
    parts: dict[str, tuple[ProductTable, int, int]], excluded: dict[str, int]
) -> list[str]:
    """Lines of a table with one row per part, then excluded images.

    Args:
      parts: {name: (its images, number of queries, number of catalogue items)}.
      excluded: {reason, such as 'unreadable': number of images}; zeros are omitted.
    """
    rows = [_HEADER] + [_row(name, *part) for name, part in parts.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    reasons = [f"{count:,} {reason}" for reason, count in excluded.items() if count]
    return lines + ([f"excluded images: {'; '.join(reasons)}"] if reasons else [])


def _row(name, table, queries, catalogue):
    counts = np.unique(table.labels, return_counts=True)[1]
    if not len(counts):
        return (name, "0", "0", "", "", "")
    each = f"{counts.min()} to {counts.max()}, median {np.median(counts):g}"
    asked = (f"{queries:,}", f"{catalogue:,}") if queries else ("", "")
    return (name, f"{len(counts):,}", f"{len(table):,}", *asked, each)
