"""What a benchmark hands over, and what was asked of it.

A benchmark is a module with `measure(quick=False, **sizes)` that yields a `Figure` per row as soon
as it is measured, and ends in `figures.program(measure)`. It joins `python -m benchmarks.run` with
one line in `REACH`.
"""

import argparse
import dataclasses
import inspect
import json
import statistics
import sys

import numpy as np

AT_LEAST, AT_MOST = ">=", "<="

# {benchmark: {row: (direction, bound)}}, in the order of the table. A benchmark may yield other
# rows; they have no bound.
REACH = {
    "train_step": {
        "train step ResNet-18 64 px, float32, over PyTorch eager": (AT_LEAST, 1.2),
        "the same in bfloat16, over PyTorch's best bfloat16": (AT_LEAST, 1.3),
    },
    "triplet_loss": {
        "batch-hard over one product, B=512 D=128": (AT_MOST, 1.8),
        "batch-hard over one product, B=2048 D=512": (AT_MOST, 1.4),
        "batch-hard over one product, B=4096 D=512": (AT_MOST, 1.4),
        "batch-hard over one product, B=8192 D=512": (AT_MOST, 1.4),
        "batch-hard, times as fast as pytorch-metric-learning, B=512 D=128": (AT_LEAST, 5),
        "batch-hard, times as fast as pytorch-metric-learning, B=2048 D=512": (AT_LEAST, 6),
        "batch-hard, times as fast as pytorch-metric-learning, B=8192 D=512": (AT_LEAST, 10),
        "semi-hard over batch-hard, B=4096 D=512": (AT_MOST, 1.6),
    },
    "exact_eval": {
        "exact recall@k, times as fast as FAISS with k=100": (AT_LEAST, 4),
        "exact recall@k, times as fast as FAISS with k=1000": (AT_LEAST, 6),
        "exact recall@k, times as fast as one float32 product": (AT_LEAST, 3.5),
        "queries other than the catalogue, times as fast as FAISS with k=100": (AT_LEAST, 2),
    },
    "loop_overhead": {
        "loop over bare loop, steps per second": (AT_LEAST, 0.98),
        "stall at a checkpoint, share of a step": (AT_MOST, 0.05),
    },
    "input_pipeline": {
        "input pipeline over bare decode + resize, images per second": (AT_LEAST, 0.92),
        "cached epochs over uncached, images per second": (AT_LEAST, 3),
    },
    "search": {"cold search of one photo, processor time": (AT_MOST, 4)},
    "first_command": {"README's first command after the download": (AT_MOST, 60)},
    "backbones": {
        "ResNet-50 forward, time over PyTorch's best": (AT_MOST, 0.8),
        "ResNet-50 forward in bfloat16, time over PyTorch's best": (AT_MOST, 1.2),
        "ResNet-50 training, time over PyTorch's best": (AT_MOST, 1.0),
        "ResNet-50 training in bfloat16, time over PyTorch's best": (AT_MOST, 1.2),
        "ViT-S/14 forward, time over PyTorch's best": (AT_MOST, 1.1),
        "ViT-S/14 forward in bfloat16, time over PyTorch's best": (AT_MOST, 1.2),
        "ViT-S/14 training, time over PyTorch's best": (AT_MOST, 1.1),
        "ViT-S/14 training in bfloat16, time over PyTorch's best": (AT_MOST, 1.2),
        "a Keras model in a graph over itself in tf.function": (AT_MOST, 1.02),
        "loading ViT-S/14 from Hugging Face's files": (AT_MOST, 2),
    },
    "samplers": {},
    "ann": {},
    "large_table": {},
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One row: the median of the rounds, and the quartiles, between which half of them lie.

    Attributes:
      name: the row.
      value: None if it was not measured; `note` then says why.
      low, high: None if there was one round.
      unit: empty for a ratio.
      note: what the reader must know: sizes, absolute figures, conditions.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""


def figure(name, values, unit="", note=""):
    """The `Figure` of the rounds' values, each a number."""
    values = [float(v) for v in np.ravel(values)]
    if len(values) == 1:
        return Figure(name, values[0], unit=unit, note=note)
    low, high = np.quantile(values, (0.25, 0.75)).tolist()
    return Figure(name, statistics.median(values), low, high, unit, note)


def asked(found, reach=REACH):
    """(bound in words, whether the figure reaches it); ('', None) if nothing was asked of it."""
    for rows in reach.values():
        if found.name in rows:
            direction, bound = rows[found.name]
            words = f"{direction} {bound:g}{' ' if found.unit else ''}{found.unit}"
            if found.value is None:
                return words, None
            at_least = direction == AT_LEAST
            return words, found.value >= bound if at_least else found.value <= bound
    return "", None


def program(measure):
    """Runs a benchmark alone: the arguments of `measure` are its flags."""
    module = sys.modules[measure.__module__]
    parser = argparse.ArgumentParser(description=module.__doc__.split("\n")[0])
    parser.add_argument("--lines", action="store_true", help="print figures as lines of JSON")
    for name, parameter in inspect.signature(measure).parameters.items():
        default = parameter.default
        kind = {"action": "store_true"} if default is False else {"type": type(default)}
        parser.add_argument(f"--{name}", default=default, help=f"(default: {default})", **kind)
    options = vars(parser.parse_args())
    as_lines = options.pop("lines")
    if as_lines:
        print_lines(measure(**options))
        return
    for found in measure(**options):
        print(text(found), flush=True)


def print_lines(found):
    """Prints figures as `benchmarks.run` reads them, a line of JSON for each."""
    for each in found:
        print(json.dumps(dataclasses.asdict(each)), flush=True)


def text(found, reach=REACH):
    """One line for a terminal."""
    bound = asked(found, reach)[0]
    bound = f"  (asked: {bound})" if bound else ""
    note = f"  {found.note}" if found.note else ""
    return f"{found.name}: {amount(found)}{bound}{note}"


def amount(found):
    """`1.32 (1.30-1.35)`, with the unit."""
    if found.value is None:
        return "not measured"
    unit = f" {found.unit}" if found.unit else ""
    spread = "" if found.low is None else f" ({_short(found.low)}-{_short(found.high)})"
    return f"{_short(found.value)}{unit}{spread}"


def _short(value):
    """Three significant digits; thousands are grouped."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
