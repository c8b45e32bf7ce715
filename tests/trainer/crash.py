"""Kills in tests: the n-th change of the file system fails, and so does every later one."""

import contextlib
import os
import signal

CHANGES = ("replace", "rename", "link", "unlink", "mkdir", "rmdir")
REAL = {name: getattr(os, name) for name in CHANGES}


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


def kill_after(count):
    """Lets `count` changes of the file system happen; the next one kills this process."""
    left = [count]

    def counted(real):
        def change(*arguments, **options):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments, **options)

        return change

    for name in CHANGES:
        setattr(os, name, counted(REAL[name]))


def spare():
    """Undoes `kill_after`, for a child of the process."""
    for name in CHANGES:
        setattr(os, name, REAL[name])
