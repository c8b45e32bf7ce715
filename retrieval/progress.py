"""Progress of a long pass: a bar in a terminal, a line in a notebook, otherwise plain lines."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from trainer import notebook

FIRST, INTERVAL = 2, 10  # seconds before the first plain line, and between later ones
WORTH_TELLING = 1  # seconds; a shorter pass reports nothing


def track(
    items: Iterable, steps: int | None, what: str, size: Callable = lambda item: 1
) -> Iterator:
    """Yields items and reports the number done, the rate and the remaining time on stderr.

    Args:
      items: the items to yield.
      steps: number of items; None if unknown.
      what: name of the pass.
      size: how much one item counts in the report, such as the rows of a batch.
    """
    report = _reporter()(what, steps)
    start = time.monotonic()
    done = count = 0
    with report:
        for item in items:
            yield item
            done, count = done + 1, count + size(item)
            report.update(done, count, time.monotonic() - start)
    elapsed = time.monotonic() - start
    if elapsed >= WORTH_TELLING:
        print(f"{what}: {count} in {elapsed:.1f} s", file=sys.stderr, flush=True)


def _reporter():
    if notebook.running():
        return _Notebook
    return _Live if sys.stderr.isatty() else _Lines


class _Live:
    def __init__(self, what, steps):
        from rich import progress
        from rich.console import Console

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[count]}  {task.fields[rate]:.0f}/s  ETA"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(what, total=steps, count=0, rate=0.0)

    def __enter__(self):
        self.bar.start()

    def __exit__(self, *error):
        self.bar.stop()

    def update(self, done, count, elapsed):
        self.bar.update(self.task, completed=done, count=count, rate=count / max(elapsed, 1e-9))


class _Lines:
    every = INTERVAL

    def __init__(self, what, steps):
        self.what, self.steps, self.last = what, steps, float(FIRST - self.every)

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass

    def update(self, done, count, elapsed):
        if elapsed - self.last < self.every:
            return
        self.last = elapsed
        line = f"{self.what}: {count}, {count / elapsed:.0f}/s"
        if self.steps:
            line += f", ETA {elapsed / done * max(0, self.steps - done):.0f} s"
        self.write(line)

    def write(self, line):
        print(line, file=sys.stderr, flush=True)


class _Notebook(_Lines):
    """A line that each report replaces."""

    every, line = WORTH_TELLING, None

    def write(self, line):
        self.line = self.line or notebook.Line()
        self.line.write(line)

    def __exit__(self, *error):
        if self.line:
            self.line.write("")  # like the bar in a terminal, it disappears
