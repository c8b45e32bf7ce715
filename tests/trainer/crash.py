"""Kills in tests: the n-th change of the file system fails, and so does every later one."""

import contextlib
import os

CHANGES = ("replace", "rename", "link", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` catches it, and no clean-up gets anything done."""


@contextlib.contextmanager
def after(count, monkeypatch):
    """Lets `count` changes of the file system happen; yields a list of what was done."""
    done = []
    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, _limited(getattr(os, name), name, count, done))
        with contextlib.suppress(Killed):
            yield done


def _limited(real, name, count, done):
    def change(*arguments, **options):
        if len(done) >= count:
            raise Killed
        result = real(*arguments, **options)
        done.append((name, *map(str, arguments[:2])))
        return result

    return change


def points(run, monkeypatch):
    """Yields after each kill of `run()`: before its first change, its second, …, and none."""
    for count in range(1000):
        with after(count, monkeypatch) as done:
            run()
        yield count
        if len(done) < count:
            return
    raise AssertionError("more than 1,000 changes")
