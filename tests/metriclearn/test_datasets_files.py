"""Writing a file: whole or not at all."""

import os
import stat

import pytest

from metriclearn.datasets import files


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.html"
    files.write(path, b"old")
    files.write(str(path), b"new")
    mask = os.umask(0)
    os.umask(mask)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.html"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_crash_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "a.html"
    files.write(path, b"old")

    def crash(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.html"]
