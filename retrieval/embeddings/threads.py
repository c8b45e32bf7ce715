"""Two threads for a pass: what is read ahead of the model, and what is written behind it."""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any


def ahead(items: Iterator) -> Iterator:
    """Yields the items of a generator, each made while the one before it is used."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


class Behind:
    """Runs one call at a time in a thread, in order, while the caller goes on.

    What a call raises, the next `submit` or `check` raises, or the end of the block.
    """

    def __enter__(self) -> "Behind":
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future | None = None
        return self

    def submit(self, function: Callable, *arguments: Any) -> None:
        """Waits until the call before has ended, and starts another."""
        self.check(wait=True)
        self._last = self._pool.submit(function, *arguments)

    def check(self, wait: bool = False) -> None:
        """Raises what the last call raised, if it has ended or the caller wants to wait for it."""
        if self._last and (wait or self._last.done()):
            last, self._last = self._last, None
            last.result()

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.check(wait=True)
        finally:
            self._pool.shutdown()
