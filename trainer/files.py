"""Files that a kill or a full disk cannot leave half-written."""

import os


def write_atomic(path, text):
    """Writes a text file so that a reader, or a kill, meets the old one or the new one."""
    temporary = f"{path}.writing"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync(path):
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
