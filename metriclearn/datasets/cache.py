"""Decoded pictures in memory, and batches cut out of them."""

import threading

import numpy as np

# Canvases have sides of whole multiples of this: one program is compiled for each shape.
GRAIN = 64


class DecodedCache:
    """Decoded pictures kept in memory, in whatever order they are first asked for.

    Pictures are kept as decoded (uint8, reduced to the size needed, not yet cropped) until `budget`
    bytes are used; the others are decoded each time. Nothing is evicted: under random access a
    fixed part is as good as any, and what was found once stays found. One cache serves one table at
    one size.

    Attributes:
      budget: bytes of pixels kept at most.
      bytes: bytes kept now.
    """

    def __init__(self, budget):
        self.budget = budget
        self.bytes = 0
        self._kept = {}
        self._lock = threading.Lock()

    def __len__(self):
        return len(self._kept)

    def sizes(self, rows):
        """int32 [B, 3]: height, width and reduction of the rows' pictures; zeros: not kept."""
        nothing = None, (0, 0, 0)
        return np.asarray([self._kept.get(row, nothing)[1] for row in rows.tolist()], np.int32)

    def cut(self, rows, windows, places, images, sizes):
        """Cuts a window out of each row's picture; keeps the new pictures that the budget allows.

        Args:
          rows: int64 [B].
          windows: int32 [B, 4] as y, x, h, w.
          places: int64 [M], the places in `rows` whose pictures are new.
          images, sizes: the new pictures, uint8 [M, H, W, C], each in the upper left corner; int32
            [M, 3] as from `sizes`.

        Returns:
          uint8 [B, H', W', C], each window in the upper left corner; the rest is arbitrary.
        """
        rows = rows.tolist()
        new = {}
        for place, image, (height, width, ratio) in zip(places, images, sizes, strict=True):
            new[int(place)] = image[:height, :width]
            self._keep(rows[place], new[int(place)], (height, width, ratio))
        height, width = -(-windows[:, 2:].max(0) // GRAIN) * GRAIN
        canvas = np.empty((len(rows), height, width, images.shape[3]), np.uint8)
        for place, (row, (y, x, h, w)) in enumerate(zip(rows, windows.tolist(), strict=True)):
            picture = new[place] if place in new else self._kept[row][0]
            canvas[place, :h, :w] = picture[y : y + h, x : x + w]
        return canvas

    def _keep(self, row, image, size):
        with self._lock:
            if row not in self._kept and self.bytes + image.nbytes <= self.budget:
                # The array given is a view of a tensor that the runtime frees.
                self._kept[row] = image.copy(), size
                self.bytes += image.nbytes
