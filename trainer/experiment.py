"""An experiment's folder: one writer, the configuration, provenance."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from types import ModuleType
from typing import Any

from trainer import checkpoints, files, helptext
from trainer import config as config_lib
from trainer.config import Config, UserError, optional
from trainer.files import write_text

_PACKAGES = ("tensorflow", "tensorflow-hub", "numpy", "absl-py", "faiss-cpu", "prototrain")

# `--fresh` first renames the checkpoints' folder to this, so that nothing resumes from it.
_OLD = "checkpoint.old"

# Files besides the checkpoints that training writes and --fresh removes.
_WRITTEN = (
    r"(config\.txt|config\.json|provenance\.json|metrics\.jsonl|code-\d+\.diff"
    r"|flight/step-\d+\.npz|summaries/(trn|vld)/(events\.out\.tfevents\..*|plugins/profile/.*))"
)
_TEMPORARY = r"((flight|checkpoint)/)?\.[^/]*\.tmp"


def directory(config: Config) -> str:
    """Returns `<trainer.experiment_base_dir>/<trainer.experiment_name>`.

    Raises:
      UserError: the name is not the name of one folder.
    """
    base, name = config["trainer.experiment_base_dir"], config["trainer.experiment_name"]
    if name in ("", ".", "..") or "/" in name or os.sep in name:
        raise UserError(
            f"trainer.experiment_name={name!r} must be the name of a folder in "
            "trainer.experiment_base_dir, without separators."
        )
    folder = os.path.join(base, name)
    if "\0" in folder or re.search("[\ud800-\udfff]", folder):
        raise UserError(
            f"{folder!r} must be UTF-8 without a null byte to be an experiment's folder."
        )
    return folder


@contextlib.contextmanager
def opened(
    config: Config, *, fresh: bool = False, yes: bool = False, ask: Callable[[str], str] = input
) -> Iterator[str]:
    """Creates the experiment's folder, marks it as ours and holds its lock.

    Args:
      config: the `Config` that names the folder.
      fresh: first remove the files of an earlier run, after asking.
      yes: do not ask.
      ask: reads the answer to a question.

    Yields:
      The folder's path.

    Raises:
      UserError: the folder cannot be written or contains something else, or another trainer uses
        it.
    """
    folder = directory(config)
    try:
        with contextlib.ExitStack() as held:
            # First the marker: in a folder of others, not even the lock file is written.
            files.claim(folder, "experiment", earlier=_of_an_earlier_version)
            lock = held.enter_context(files.only_writer(folder))
            lock.write(f" on {platform.node()}")
            lock.flush()
            _finish_clearing(folder)
            checkpoints.claim(os.path.join(folder, "checkpoint"))
            files.remove(folder, "experiment", _TEMPORARY)  # left by a kill
            if fresh:
                _clear(folder, yes, ask)
                checkpoints.claim(os.path.join(folder, "checkpoint"))
            stack = held.pop_all()
    except UserError:
        raise
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: {error.strerror}, or stop it, or choose another --trainer.experiment_name."
        ) from None
    except OSError as error:
        raise UserError(
            f"Cannot write to the experiment folder {folder}: {error.strerror}. Choose another "
            "with --trainer.experiment_base_dir or --trainer.experiment_name."
        ) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    with stack:
        yield folder


def _of_an_earlier_version(folder):
    """Whether a folder without a marker is certainly an experiment, or empty."""
    if not any(names for _, _, names in os.walk(folder) if set(names) - {files.LOCK}):
        return True
    try:
        saved = files.read_json(os.path.join(folder, "config.json"))
    except ValueError:
        return False
    ours = {"trainer.experiment_name", "model.num_steps", "model.batch_size"}
    return (
        isinstance(saved, dict)
        and ours <= saved.keys()
        and checkpoints.all_ours(os.path.join(folder, "checkpoint"))
    )


def _clear(folder, yes, ask):
    """Removes the files of an earlier run; after the rename, nothing can resume from them."""
    checkpoint_folder = os.path.join(folder, "checkpoint")
    step = checkpoints.latest(checkpoint_folder)
    if step and not yes:
        question = f"--fresh deletes {folder} (its last checkpoint is {step}). Delete? [y/N] "
        try:
            answer = ask(question)
        except (EOFError, OSError, RuntimeError, ValueError):  # no terminal, or stdin is closed
            raise UserError(f"--fresh would delete {folder}: confirm with --yes.") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise UserError(f"Kept {folder}: nothing was deleted.")
    os.rename(checkpoint_folder, os.path.join(folder, _OLD))
    _finish_clearing(folder)


def _finish_clearing(folder):
    """Removes an earlier run whose checkpoints were renamed, also after a kill."""
    old = os.path.join(folder, _OLD)
    if not os.path.isdir(old):
        return
    stayed = files.remove(folder, "experiment", _WRITTEN)
    stayed = [name for name in stayed if not name.startswith(f"{_OLD}/")]
    if os.listdir(old):
        stayed += checkpoints.discard(old)
    else:
        os.rmdir(old)
    if os.path.isdir(old):  # moves files of others back
        os.rename(old, os.path.join(folder, "checkpoint"))
    if stayed:
        shown = ", ".join(stayed[:5]) + (" …" if len(stayed) > 5 else "")
        print(f"--fresh kept {len(stayed)} files that training does not write: {shown}")


def read_config(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the configuration of an experiment as a dict of JSON values; None if it has none.

    Raises:
      UserError: the file is damaged.
    """
    return _read_json(os.path.join(folder, "config.json"), dict)


def _read_json(path, kind):
    if not os.path.exists(path):
        return None
    try:
        value = files.read_json(path)
    except ValueError as error:
        raise UserError(f"{error}; repair the file or move it away.") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: contains no {kind.__name__}; repair the file or move it away.")
    return value


def last_start(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the newest entry of an experiment's provenance.json, or None."""
    starts = _read_json(os.path.join(folder, "provenance.json"), list)
    return starts[-1] if starts and isinstance(starts[-1], dict) else None


def restore_config(
    model: ModuleType,
    given: Collection[str],
    folder: str | None = None,
    allow_code: bool | None = None,
) -> str:
    """Gives a model the configuration that an experiment was trained with.

    Args:
      model: a model module.
      given: names of the keys that the command line set; they keep their values.
      folder: the experiment's folder; default: that of the model's configuration.
      allow_code: whether functions of other packages in config.json may be imported; default:
        whether `--allow_code` was given.

    Returns:
      The experiment's folder. Without a config.json, the configuration is not changed.

    Raises:
      UserError: config.json names a function of another package and code is not allowed.
    """
    folder = folder or directory(model.config)
    saved = {k: v for k, v in (read_config(folder) or {}).items() if k not in given}
    foreign = config_lib.foreign_code(model.config, saved, model.__name__)
    if foreign and not (model.config.code_allowed if allow_code is None else allow_code):
        raise UserError(
            f"{folder}/config.json names code to import and run: {', '.join(foreign)}. If you "
            "trust it, add --allow_code, or set the key yourself."
        )
    model.config.restore(saved)
    return folder


def locate(
    model: ModuleType,
    given: Collection[str],
    checkpoint: str | None = None,
    allow_code: bool | None = None,
) -> tuple[str, str]:
    """Finds a trained model: its experiment, and the checkpoint to use.

    Args:
      model: a model module; it gets the experiment's configuration.
      given: names of the keys that the command line set; they override it.
      checkpoint: 'best' by `trainer.best_metric`, 'last', or an argument of `checkpoints.find`.
        None: the best or, if the experiment keeps none, the last.
      allow_code: see `restore_config`.

    Returns:
      (the experiment's folder, the checkpoint's prefix).

    Raises:
      UserError: there is no checkpoint.
    """
    if checkpoint in (None, "best", "last"):
        folder = directory(model.config)
        last = checkpoints.latest(os.path.join(folder, "checkpoint"))
        if last is None:
            train = helptext.command("train", "trainer.main", *arguments(model, folder))
            raise UserError(
                f"No checkpoint in {folder}: train one first with `{train}`, or give one with "
                "--checkpoint."
            )
        best = checkpoints.latest(os.path.join(folder, "checkpoint", "best"))
        if checkpoint == "best" and best is None:
            raise UserError(
                f"--checkpoint=best: {folder} keeps no best checkpoint; train with "
                "--trainer.best_metric and --trainer.evaluation_interval, or use --checkpoint=last."
            )
        prefix = last if checkpoint == "last" or best is None else best
    else:
        prefix = checkpoints.find(checkpoint)
        folder = os.path.dirname(os.path.abspath(prefix))
        while os.path.basename(folder) in ("best", "checkpoint"):
            folder = os.path.dirname(folder)
    return restore_config(model, given, folder, allow_code), prefix


def describe(prefix: str) -> str:
    """Returns a line that describes which checkpoint of an experiment a prefix is."""
    folder, step = os.path.dirname(prefix), checkpoints.step_of(prefix)
    if os.path.basename(folder) != "best":
        return f"checkpoint: {prefix}"
    last = checkpoints.steps(os.path.dirname(folder))[-1:]
    others = f"; the last is step {last[0]}" if last and last[0] != step else ", also the last"
    return f"checkpoint: the best on validation, step {step}{others}"


def arguments(model: ModuleType, folder: str) -> list[str]:
    """Returns the flags that name a model and its experiment."""
    base, name = os.path.split(folder)
    words = [f"--model={model.__name__}", f"--trainer.experiment_name={name}"]
    return words + ([f"--trainer.experiment_base_dir={base}"] if base != "experiments" else [])


def check_resume(folder: str, config: Config, allow_change: bool = False) -> list[str]:
    """Compares the configuration with that of the experiment's first start.

    Args:
      folder: the experiment's folder.
      config: the `Config` of this start.
      allow_change: accept a change that makes a different run.

    Returns:
      One line per change.

    Raises:
      UserError: a change makes a different run: a key declared `fixed`, or of `dataset.`.
    """
    old = read_config(folder)
    if old is None:
        return []
    changes = config_lib.diff(old, config.to_dict())
    lines = [f"{key}: {before!r} -> {after!r}" for key, (before, after) in changes.items()]
    fixed = [
        line
        for key, line in zip(changes, lines, strict=True)
        if key.startswith("dataset.") or (key in config and config.key(key).fixed)
    ]
    if fixed and not allow_change:
        raise UserError(
            f"{folder} was trained with another configuration ({'; '.join(fixed)}), so this would "
            "be a different run. Use another --trainer.experiment_name, start over with --fresh, "
            "or add --allow_config_change."
        )
    return lines


def check_data(folder: str, fingerprint: str, allow_change: bool = False) -> None:
    """Raises `UserError` if the experiment's last start read other data than this start.

    Args:
      folder: the experiment's folder.
      fingerprint: `input_state.fingerprint` of this start's data.
      allow_change: accept other data.
    """
    before = (last_start(folder) or {}).get("data_fingerprint", fingerprint)
    if before != fingerprint and not allow_change:
        raise UserError(
            f"datasets()['trn'] yields other shapes or types than when {folder} was trained (data "
            f"{before}, now {fingerprint}), so its position cannot be resumed. Restore the code, "
            "start over with --fresh, or add --allow_config_change."
        )


def write_config(folder: str, config: Config) -> None:
    """Writes config.txt for people and config.json for machines."""
    write_text(os.path.join(folder, "config.txt"), config.to_text())
    write_text(os.path.join(folder, "config.json"), config.to_json())


def write_provenance(
    folder: str, model: ModuleType, start_step: int, devices: list[str], data_fingerprint: str
) -> None:
    """Adds this start to provenance.json: code, command line, versions, host, devices, data.

    Uncommitted changes of the code are saved beside it as code-<start>.diff, byte for byte. If this
    fails, a warning is printed.
    """
    with optional("provenance.json"):
        path = os.path.join(folder, "provenance.json")
        starts = _read_json(path, list) or []
        # A model defined in a notebook has no file.
        where = os.path.dirname(os.path.abspath(getattr(model, "__file__", None) or "x"))
        changes = _git(where, "diff", "HEAD")
        files.remove(folder, "experiment", rf"code-{len(starts)}\.diff")  # left by a failed start
        if changes:
            with files.published(os.path.join(folder, f"code-{len(starts)}.diff")) as out:
                out.write(changes)
        commit = _git(where, "rev-parse", "HEAD")
        starts.append(
            {
                "model": model.__name__,
                "start_step": start_step,
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": [sys.executable, *sys.orig_argv[1:]],
                "git_commit": commit.decode().strip() if commit else None,
                "git_diff": f"code-{len(starts)}.diff" if changes else None,
                "python": platform.python_version(),
                "packages": versions(),
                "host": platform.node(),
                "devices": devices,
                "data_fingerprint": data_fingerprint,
                "sources": getattr(model, "sources", dict)(),  # revisions of the initial weights
            }
        )
        write_text(path, json.dumps(starts, indent=1) + "\n")


def _git(folder, *arguments):
    """The output of git as bytes, None if it fails."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def versions() -> dict[str, str | None]:
    """Returns {name: version} of the packages that a run depends on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
