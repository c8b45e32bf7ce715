"""Threads of a pass: reading ahead of the model, and writing behind it."""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any


def ahead(items: Iterator) -> Iterator:
    """Yields the items of a generator; each is made while the previous item is used."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


class Behind:
    """Runs calls in a thread, one at a time and in order, while the caller continues.

    An exception of a call is raised by the next `submit` or `check`, or at the end of the block.
    """

    def __enter__(self) -> "Behind":
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future | None = None
        return self

    def submit(self, function: Callable, *arguments: Any) -> None:
        """Waits until the previous call has ended, and starts the next."""
        self.check(wait=True)
        self._last = self._pool.submit(function, *arguments)

    def check(self, wait: bool = False) -> None:
        """Raises the exception of the last call if it has ended, or waits for it first."""
        if self._last and (wait or self._last.done()):
            last, self._last = self._last, None
            last.result()

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.check(wait=True)
        finally:
            self._pool.shutdown()
