"""Keeps decoded images in memory and cuts batches from them."""

import itertools
import threading

import numpy as np

# Sides of canvases are multiples of this: one program is compiled per shape.
GRAIN = 64


class DecodedCache:
    """Decoded images in memory, in the order of first use.

    Images are kept as decoded (uint8, reduced to the size needed, not yet cropped) until `budget`
    bytes are used; the others are decoded each time. Nothing is evicted: with random access, any
    fixed subset is equally good. A cache is for one table at one size.

    A batch is made between `sizes`, which opens a ticket, and `close`: until then all images of the
    batch are kept, also those beyond the budget.

    Attributes:
      budget: maximum bytes of pixels.
      bytes: current bytes of pixels.
    """

    def __init__(self, budget):
        self.budget = budget
        self.bytes = 0
        self._kept = {}
        self._open = {}
        self._tickets = itertools.count()
        self._lock = threading.Lock()

    def __len__(self):
        return len(self._kept)

    def sizes(self, rows):
        """Opens a batch.

        Args:
          rows: int64 [B].

        Returns:
          (int64 ticket; int32 [B, 3]: height, width and reduction of the rows' images, zeros for
          images that must be decoded).
        """
        ticket = next(self._tickets)
        found = {row: self._kept[row] for row in rows.tolist() if row in self._kept}
        self._open[ticket] = found
        nothing = None, (0, 0, 0)
        sizes = [found.get(row, nothing)[1] for row in rows.tolist()]
        return np.int64(ticket), np.asarray(sizes, np.int32).reshape(-1, 3)

    def add(self, ticket, row, image, ratio):
        """Adds a decoded image, uint8 [h, w, C], with its int32 [3] as in `sizes`."""
        size = (*image.shape[:2], int(ratio))
        # The argument is a view of a tensor that the runtime frees.
        entry = image.copy(), size
        self._open[int(ticket)][int(row)] = entry
        with self._lock:
            if int(row) not in self._kept and self.bytes + image.nbytes <= self.budget:
                self._kept[int(row)] = entry
                self.bytes += image.nbytes
        return np.asarray(size, np.int32)

    def cut(self, ticket, rows, windows):
        """Cuts a window, int32 [B, 4] as y, x, h, w, from each row's image.

        Returns:
          uint8 [B, H', W', C], each window in the upper left corner; the rest is arbitrary.
        """
        height, width = -(-windows[:, 2:].max(0) // GRAIN) * GRAIN
        channels = self._open[int(ticket)][int(rows[0])][0].shape[2]
        canvas = np.empty((len(rows), height, width, channels), np.uint8)
        for place, (row, window) in enumerate(zip(rows, windows, strict=True)):
            h, w = window[2:]
            canvas[place, :h, :w] = self.cut_one(ticket, row, window)
        return canvas

    def cut_one(self, ticket, row, window):
        """One window, uint8 [h, w, C]."""
        y, x, h, w = window.tolist()
        return self._open[int(ticket)][int(row)][0][y : y + h, x : x + w]

    def close(self, ticket):
        """Releases the batch; returns its ticket."""
        del self._open[int(ticket)]
        return ticket
