"""`python -m trainer.diff A B`: shows how two experiments differ, and from which step on.

A and B are folders of experiments. The configurations, the code and packages of the last starts,
the training data and metrics.jsonl (up to the first difference) are compared.
"""

import difflib
import os
import subprocess

from trainer import program, quiet

quiet.import_tensorflow()

from trainer import config as config_lib  # noqa: E402 (after the quiet import)
from trainer import experiment, meters  # noqa: E402
from trainer.config import UserError  # noqa: E402

_NAMES = ("trainer.experiment_base_dir", "trainer.experiment_name")
SHOWN = 40  # lines shown of a code difference


def compare(a: str | os.PathLike, b: str | os.PathLike) -> dict[str, list[str]]:
    """Compares two experiments.

    Args:
      a, b: their folders.

    Returns:
      {section: list of lines}, empty if there is no difference: config, code, data, packages,
      start (command, host, devices, python, model) and metrics.

    Raises:
      UserError: a folder is not an experiment.
    """
    folders = [_experiment(path) for path in (a, b)]
    configs = [experiment.read_config(folder) for folder in folders]
    starts = [experiment.last_start(folder) or {} for folder in folders]
    return {
        "config": _changes(*configs, without=_NAMES),
        "code": _code(folders, starts),
        "data": _data(configs, starts),
        "packages": _changes(*(start.get("packages", {}) for start in starts)),
        "start": _start(starts),
        "metrics": _metrics(*(meters.read_metrics(folder) for folder in folders)),
    }


def _experiment(path):
    path = os.path.expanduser(path)
    if experiment.read_config(path) is None:
        raise UserError(f"{path} is not an experiment: it has no config.json.")
    return path


def _changes(a, b, without=()):
    changes = config_lib.diff(a, b)
    return [f"{k}: {old!r} -> {new!r}" for k, (old, new) in changes.items() if k not in without]


def _start(starts):
    names = ("model", "python", "host", "devices")
    lines = _changes(*({name: start.get(name) for name in names} for start in starts))
    a, b = (start.get("command", [])[1:] for start in starts)
    # The experiment's folder always differs.
    for words, others, which in ((a, b, "first"), (b, a, "second")):
        own = [w for w in words if w not in others and not w.lstrip("-").startswith(_NAMES)]
        lines += [f"only the {which} command has {' '.join(own)}"] if own else []
    return lines


# ---------------------------------------------------------------------------- code and data


def _code(folders, starts):
    commits = [start.get("git_commit") for start in starts]
    lines = []
    if commits[0] != commits[1]:
        lines.append(f"commit: {commits[0]} -> {commits[1]}")
        if None not in commits:
            lines += _git("log", "--oneline", "..".join(commits))
            lines += _git("diff", "--stat", *commits)
    changes = [_uncommitted(folder, start) for folder, start in zip(folders, starts, strict=True)]
    if changes[0] != changes[1]:
        found = difflib.unified_diff(
            *changes, *(f"{f}, uncommitted changes" for f in folders), lineterm="", n=0
        )
        found = list(found)
        lines += found[:SHOWN]
        if len(found) > SHOWN:
            lines.append(f"… and {len(found) - SHOWN} more lines: compare the code-*.diff files")
    return lines


def _uncommitted(folder, start):
    if not start.get("git_diff"):
        return []
    try:
        path = os.path.join(folder, os.path.basename(start["git_diff"]))
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return [f"({start['git_diff']} is missing)"]


def _git(*arguments):
    """Lines that git prints; none if the current folder's repository lacks the commits."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode(errors="replace").splitlines() if done.returncode == 0 else []


def _data(configs, starts):
    prints = [start.get("data_fingerprint") for start in starts]
    if None in prints:
        keys = [{k: v for k, v in c.items() if k.startswith("dataset.")} for c in configs]
        return _changes(*keys)
    return [] if prints[0] == prints[1] else [f"fingerprint: {prints[0]} -> {prints[1]}"]


# ---------------------------------------------------------------------------- metrics


def _metrics(a, b):
    """The first step with a figure that both metrics.jsonl have and that differs."""
    a, b = _by_step(a), _by_step(b)
    common = [key for key in a if key in b]
    lines = []
    if not common:
        return ["the two metrics.jsonl have no step in common"] if a or b else []
    equal = None
    for key in common:
        names = [n for n in a[key] if n in b[key] and not _same(a[key][n], b[key][n])]
        if names:
            split, step, _ = key
            after = f"equal up to step {equal}" if equal is not None else "never equal"
            lines.append(f"first differ at step {step} ({split}; {after}):")
            lines += [f"  {n}: {a[key][n]:.9g} -> {b[key][n]:.9g}" for n in names]
            break
        equal = key[1]
    ends = [max(step for _, step, _ in lines_) for lines_ in (a, b)]
    if ends[0] != ends[1]:
        lines.append(f"last step: {ends[0]} -> {ends[1]}")
    return lines


def _by_step(lines):
    """{(split, step, whether a full pass): figures}, in the order of the file."""
    return {
        (line["split"], line["step"], "examples" in line): {
            name: value for name, value in line.items() if name not in ("split", "step")
        }
        for line in lines
    }


def _same(x, y):
    return x == y or (x != x and y != y)  # NaN equals NaN here


# ---------------------------------------------------------------------------- the program


def main(a: str, b: str) -> int:
    """The program, for `trainer.program.run_without_model`."""
    for section, lines in compare(a, b).items():
        print(f"{section}: " + ("" if lines else "no difference"))
        for line in lines:
            print(f"  {line}")
    return 0


if __name__ == "__main__":
    program.run_without_model(main, stopped="stopped", arguments=("A", "B"))
