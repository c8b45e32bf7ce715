"""Items' images, made small once and kept in memory."""

import collections
import hashlib
import io
import os
import stat
import threading

from PIL import Image

from metriclearn.datasets import image_files

SIZES = (64, 128, 256, 512, 1024)  # longer sides that are made; others get the next larger
KEPT = 64 * 2**20  # bytes of images kept in memory


class Thumbnails:
    """JPEG files of images, by path and size. Safe to use from several threads.

    An image is known by its real path, size and time of change, so that a replaced file is made
    anew, and several versions of an index may share what is made.
    """

    def __init__(self, root: str = "", max_pixels: int = image_files.MAX_PIXELS, kept: int = KEPT):
        """Args:

        root: folder that every image must lie in, after links are followed; '' for any.
        max_pixels: size above which an image is refused.
        kept: bytes to keep in memory.
        """
        self._root = os.path.realpath(root) if root else ""
        self._max_pixels, self._kept = max_pixels, kept
        self._made = collections.OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def find(self, path: str) -> tuple[str, str] | None:
        """Returns (real path, tag of its content) of an item's image, or None if there is none."""
        real = os.path.realpath(os.path.join(self._root, path)) if path and "\0" not in path else ""
        if not real or (self._root and os.path.commonpath([self._root, real]) != self._root):
            return None
        try:
            about = os.stat(real)
        except OSError:
            return None
        if not stat.S_ISREG(about.st_mode):
            return None
        name = f"{real}\0{about.st_size}\0{about.st_mtime_ns}"
        return real, hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def make(self, real: str, tag: str, size: int) -> bytes:
        """Returns a JPEG file whose longer side is at most `size`.

        Raises:
          ValueError: the file cannot be read as an image.
        """
        size = next((s for s in SIZES if s >= size), SIZES[-1])
        with self._lock:
            if (tag, size) in self._made:
                self._made.move_to_end((tag, size))
                return self._made[tag, size]
        pixels = image_files.read(real, least=(size, size), max_pixels=self._max_pixels)[0]
        image = Image.fromarray(pixels)
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85)
        made = out.getvalue()
        with self._lock:
            if (tag, size) not in self._made:
                self._made[tag, size] = made
                self._bytes += len(made)
            while self._bytes > self._kept and len(self._made) > 1:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return made
