"""Signals ask the loop to stop between two steps; a second one exits at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def graceful() -> Iterator[Callable[[], str | None]]:
    """Yields a function that returns the name of the signal that asked to stop, or None.

    The handlers do nothing, because a step or a save must not be interrupted. A thread counts the
    signals, because Python runs no handler while the main thread is inside a step. Signals that the
    parent process ignores remain ignored (`nohup`). Only the main thread can receive signals; in
    other threads the function always returns None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    caught: list[str] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stop = [number for number in _STOP if signal.getsignal(number) != signal.SIG_IGN]

    def watch():
        while number := os.read(reader, 1)[0]:
            if number in stop:
                # A closing terminal sends hangups in addition to other signals: they do not count.
                if number != signal.SIGHUP and any(name != "SIGHUP" for name in caught):
                    os._exit(128 + number)
                caught.append(signal.Signals(number).name)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    handlers = {number: signal.signal(number, lambda *_: None) for number in stop}
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
