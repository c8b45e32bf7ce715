"""Run reporting: a progress line for people, metrics.jsonl for programs."""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import rich.console
import rich.progress

from trainer import notebook
from trainer.config import Config, UserError, did_you_mean
from trainer.files import write_text


class MetricsLog:
    """Appends to metrics.jsonl: one object per line, `{"split": …, "step": …, "loss": …, …}`.

    Lines beyond `start_step`, written by an interrupted run after its last checkpoint, are removed
    first, so that a resumed run's file equals an uninterrupted one's.

    Args:
      folder: the experiment's folder.
      start_step: completed steps.
      log: `trainer.log`, also called with every line; its errors become warnings.
    """

    def __init__(self, folder: str, start_step: int, log: Callable | None = None):
        self._log, self._warned = log, False
        self._path = os.path.join(folder, "metrics.jsonl")
        kept = [line for line in read_metrics(folder) if line["step"] <= start_step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (open while training)

    def write(self, split: str, step: int, **values) -> None:
        """Appends a line; `UserError` if the disk is full."""
        values = {name: float(value) for name, value in values.items()}
        line = {"split": split, "step": step} | values
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"Cannot write {self._path}: {error.strerror}.") from None
        if self._log:
            try:
                self._log(split, step, values)
            except Exception as error:  # errors of another server must not end training
                if not self._warned:
                    text = " ".join(f"{type(error).__name__}: {error}".split())
                    print(f"warning: trainer.log failed at step {step} ({text})", file=sys.stderr)
                self._warned = True

    def close(self) -> None:
        """Closes the file; `write` has already reported a full disk."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of an experiment's metrics.jsonl as dicts, up to the first damaged line."""
    lines = []
    with (
        contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError),
        open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8", errors="replace") as file,
    ):
        for text in file:
            line = json.loads(text)
            line["step"] + 0, line["split"].lower()  # our lines have both
            lines.append(line)
    return lines


def direction(metric: str) -> tuple[str, bool]:
    """Returns the name of a figure, and whether lower is better.

    Args:
      metric: `max:name` or `min:name`, or only a name: a loss, an error or a rank is better when
        lower, anything else when higher.
    """
    stated, colon, name = metric.partition(":")
    if colon and stated in ("max", "min"):
        return name, stated == "min"
    return metric, re.search(r"loss|error|rank", metric) is not None


class Best:
    """Tracks `trainer.best_metric` over the full validation passes, also those before a resume.

    If values are equal, the lower loss is better: with few images, recall alone cannot distinguish
    embeddings. A NaN is never the best.

    Args:
      folder: the experiment's folder, for earlier passes.
      config: a `Config`.
    """

    def __init__(self, folder: str | os.PathLike, config: Config):
        self.metric, lower = direction(config["trainer.best_metric"])
        self._sign = -1 if lower else 1
        self.value: float | None = None
        self.step: int | None = None
        self._rank: tuple[float, float] | None = None
        self._since = 0
        self._patience = config["trainer.early_stopping_patience"]
        if self._patience and not self.metric:
            raise UserError("trainer.early_stopping_patience needs trainer.best_metric.")
        for line in read_metrics(folder):
            if "examples" in line and self.metric in line:
                self.improved(line["step"], line)

    def improved(self, step: int, values: dict[str, float]) -> bool:
        """Adds one full validation pass; returns whether it is the best so far."""
        if not self.metric:
            return False
        if self.metric not in values:
            raise UserError(
                f"trainer.best_metric={self.metric!r} is not among the validation figures: "
                f"{', '.join(values)}.{did_you_mean(self.metric, values)}"
            )
        value = values[self.metric]
        rank = (self._sign * value, -values.get("loss", 0.0))
        if not math.isnan(value) and (self._rank is None or rank > self._rank):
            self.value, self.step, self._rank, self._since = value, step, rank, 0
            return True
        self._since += 1
        return False

    def stalled(self) -> bool:
        """Returns whether `trainer.early_stopping_patience` passes went by without a better one."""
        return 0 < self._patience <= self._since


class Watch:
    """Detects training without progress: collapsed embeddings, or a loss that has become 0.

    If embeddings have collapsed to one point, a triplet loss equals its margin.
    """

    LIMIT, REPORTS = 1e-3, 3

    def __init__(self):
        self._collapsed = self._zero = 0

    def check(self, step: int, values: dict[str, float]) -> str | None:
        """Returns a warning once if either was the case in three reports, else None.

        Args:
          step: completed steps.
          values: figures of the report: `loss`, and `embedding_spread` if the model has embeddings.
        """
        low = values.get("embedding_spread", 1.0) < self.LIMIT
        self._collapsed = self._collapsed + 1 if low else 0
        self._zero = self._zero + 1 if values["loss"] == 0 and not low else 0
        if self._zero == self.REPORTS:
            return (
                f"the loss has been 0 in the last {self.REPORTS} reports (step {step}): every pair "
                "or triplet of these batches already satisfies its margin, so nothing is learned. "
                "Use a loss that never is 0 (supervised contrastive, or a soft margin), a harder "
                "miner (batch_hard) or batches of one category, or stop here."
            )
        if self._collapsed == self.REPORTS:
            return (
                f"the embeddings have collapsed to one point (embedding_spread "
                f"{values['embedding_spread']:.1g}, loss {values['loss']:.4g}): the loss is stuck "
                "at its margin. Lower the learning rate, warm it up, or mine easier negatives."
            )
        return None


class Forecast:
    """Estimates the duration of a run from the time of its first steps.

    Args:
      start: completed steps.
      total: the step at which training ends.
      evaluate_every: steps between full validation passes, 0 for none.
    """

    WARM_UP, TIMED = 3, 5  # the first steps prepare the graph and fill the input buffers
    LONG = 600  # seconds above which a shorter run is suggested

    def __init__(self, start: int, total: int, evaluate_every: int):
        self._start, self._total, self._every = start, total, evaluate_every
        self._steps: list[float] = []
        self._pass = 0.0

    def evaluated(self, seconds: float) -> None:
        """Adds the time of a full validation pass."""
        self._pass = seconds

    def step(self, done: int, seconds: float) -> str | None:
        """Adds the time of a step; returns the estimate after the last timed step, else None."""
        if done > self._start + self.WARM_UP:
            self._steps.append(seconds)
        if done != self._start + self.WARM_UP + self.TIMED:
            return None
        per_step = sum(self._steps) / len(self._steps)
        per_step += self._pass / self._every if self._every else 0.0
        left = per_step * (self._total - done)
        line = f"about {_rounded(left)} on this machine ({per_step:.2g} s per step)"
        if left > self.LONG:
            steps = max(done, int(done + self.LONG / per_step))
            line += f"; --model.num_steps={steps} for {_rounded(self.LONG)}"
        return line


class Progress:
    """A progress line (step, loss, learning rate, images/s, ETA) in a terminal or a notebook.

    Otherwise, plain lines.

    Args:
      start: completed steps.
      total: the step at which training ends.
      batch_size: images per step.
    """

    def __init__(self, start, total, batch_size):
        self._total, self._batch_size = total, batch_size
        self._step, self._time, self._rate = start, time.monotonic(), None
        self._console = rich.console.Console(stderr=False, highlight=False)
        self._bar = self._line = None
        if notebook.running():
            self._line = notebook.Line()
        elif self._console.is_terminal:
            columns = (
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TextColumn("{task.description}"),
            )
            # Only `report` refreshes it: a refresh thread would slow down the loop.
            self._bar = rich.progress.Progress(*columns, console=self._console, auto_refresh=False)
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    @contextlib.contextmanager
    def paused(self):
        """Excludes the time within this context, such as validation, from the speed."""
        before = time.monotonic()
        yield
        self._time += time.monotonic() - before

    def report(self, step, loss, learning_rate):
        """Shows the progress of training; returns images/s since the last report."""
        now = time.monotonic()
        speed = (step - self._step) / max(now - self._time, 1e-9)
        self._rate = speed if self._rate is None else 0.7 * self._rate + 0.3 * speed
        self._step, self._time = step, now
        eta = _duration((self._total - step) / self._rate)
        images = speed * self._batch_size
        text = f"loss {loss:.4f}  lr {learning_rate:.3g}  {images:.0f} images/s  ETA {eta}"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text, refresh=True)
        elif self._line:
            bar = notebook.bar(step / self._total)
            self._line.write(f"step {step}/{self._total} {bar} {text}")
        else:
            print(f"step {step}/{self._total}  {text}", flush=True)
        return images

    def say(self, text):
        """Prints a line above the progress line."""
        if self._bar:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def warn(self, text):
        """Prints a warning to stderr."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self):
        """Ends the progress line."""
        if self._bar:
            self._bar.stop()


def _rounded(seconds):
    """A duration in words, in a suitable unit."""
    for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
        if seconds >= 1.5 * size or size == 1:
            return f"{seconds / size:.0f} {unit}"


def _duration(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


# ---------------------------------------------------------------------------- messages


def opening(model, folder, trained, devices, workers, start_step, num_steps):
    """The first line of a run."""
    count = sum(v.shape.num_elements() for v in trained)
    start = f"resuming at step {start_step}" if start_step else "starting"
    return (
        f"{model.__name__}: {start}, to step {num_steps}; {count:,} trained parameters, "
        f"{len(devices)} tower{'s' * (len(devices) > 1)} ({devices[0]}…)"
        f"{f' on each of {workers} workers' * (workers > 1)}, folder {folder}"
    )


def describe(step, values):
    """The line of a full validation pass."""
    return f"validation at step {step}: " + "  ".join(f"{k} {v:.4g}" for k, v in values.items())


def describe_loaded(report):
    """The result of `checkpoints.load_matching` in words."""
    parts = (f"{len(names)} {what}" for what, names in report.items())
    rest = [n for what in ("missing", "mismatched") for n in report[what]][:4]
    return ", ".join(parts) + (f" ({', '.join(rest)} …)" if rest else "")
