"""How this package writes a file: whole or not at all."""

import contextlib
import os
import tempfile


def write(path: str | os.PathLike, data: bytes) -> None:
    """Replaces a file atomically: a reader, a kill or a full disk meets the old file or the new.

    Args:
      path: the file, in a folder that exists.
      data: its new content.

    Raises:
      OSError: the file cannot be written; the old file is unchanged.
    """
    path = os.path.abspath(path)
    with tempfile.NamedTemporaryFile(
        dir=os.path.dirname(path), prefix=".", suffix=".tmp", delete=False
    ) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file.name, 0o666 & ~mask)
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
