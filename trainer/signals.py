"""Ctrl-C and SIGTERM ask the loop to stop between two steps; a second one leaves at once."""

import contextlib
import os
import signal
import threading

_STOP = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def graceful():
    """Yields a function that returns the name of the signal that asked to stop, or None.

    Nothing happens in the signal itself: interrupting a step or a save would tear it. A thread
    counts the signals, because Python runs no handler while the main thread is inside a step.
    """
    caught = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch():
        while number := os.read(reader, 1)[0]:
            if number in _STOP:
                if caught:
                    os._exit(128 + number)
                caught.append(signal.Signals(number).name)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    handlers = {number: signal.signal(number, lambda *_: None) for number in _STOP}
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
