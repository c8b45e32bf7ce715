"""Ctrl-C and SIGTERM ask the loop to stop between two steps; a second one leaves at once."""

import contextlib
import os
import signal


@contextlib.contextmanager
def graceful():
    """Yields a function that returns the name of the signal that asked to stop, or None.

    Handlers only set a flag: a signal that interrupted a step or a save would tear them.
    """
    caught = []

    def handle(number, frame):
        if caught:
            os._exit(128 + number)
        caught.append(signal.Signals(number).name)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
