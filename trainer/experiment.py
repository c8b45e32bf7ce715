"""An experiment's folder: one writer, its configuration, where its code came from."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys

from trainer import checkpoints
from trainer import config as config_lib
from trainer.config import UserError
from trainer.files import write_text

_PACKAGES = ("tensorflow", "tensorflow-hub", "numpy", "absl-py", "faiss-cpu", "prototrain")


def directory(config):
    """Returns `<trainer.experiment_base_dir>/<trainer.experiment_name>`."""
    return os.path.join(
        os.path.expanduser(config["trainer.experiment_base_dir"]), config["trainer.experiment_name"]
    )


@contextlib.contextmanager
def opened(config, *, fresh=False, yes=False, ask=input):
    """Makes the experiment's folder and holds its lock.

    Args:
      config: the `Config` that names the folder.
      fresh: delete what an earlier run left there, after asking.
      yes: do not ask.
      ask: reads the answer to a question.

    Yields:
      The folder's path.

    Raises:
      UserError: where the folder cannot be written, or another trainer holds it.
    """
    folder = directory(config)
    try:
        os.makedirs(os.path.join(folder, "checkpoint"), exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "a+")  # noqa: SIM115 (held while training)
    except OSError as error:
        raise UserError(
            f"Cannot write to the experiment folder {folder}: {error.strerror}. Choose another "
            "with --trainer.experiment_base_dir or --trainer.experiment_name."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(
                f"Another trainer ({lock.read().strip() or 'unknown'}) writes to {folder}. Stop "
                "it, or choose another --trainer.experiment_name."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        if fresh:
            _clear(folder, yes, ask)
        yield folder


def _clear(folder, yes, ask):
    left = [name for name in os.listdir(folder) if name != ".lock"]
    step = checkpoints.latest(os.path.join(folder, "checkpoint"))
    if step and not yes:
        question = f"--fresh deletes {folder} (its last checkpoint is {step}). Delete? [y/N] "
        try:
            answer = ask(question)
        except EOFError:
            raise UserError(f"--fresh would delete {folder}: confirm with --yes.") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise UserError(f"Kept {folder}: nothing was deleted.")
    for name in left:
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    os.makedirs(os.path.join(folder, "checkpoint"))


def read_config(folder):
    """Returns the configuration of an experiment as a dict of JSON values, or None."""
    return _read_json(os.path.join(folder, "config.json"))


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); mend it or move it away.") from None


def last_start(folder):
    """Returns the newest entry of an experiment's provenance.json, a dict, or None."""
    starts = _read_json(os.path.join(folder, "provenance.json"))
    return starts[-1] if starts else None


def restore_config(model, given, folder=None):
    """Makes the configuration that an experiment was trained with the model's own.

    Args:
      model: a model module.
      given: names of the keys that the command line set; they keep their values.
      folder: the experiment's; the one that the model's configuration names if None.

    Returns:
      The experiment's folder. Without a config.json in it, the configuration stays as it is.
    """
    folder = folder or directory(model.config)
    saved = read_config(folder) or {}
    model.config.restore({key: value for key, value in saved.items() if key not in given})
    return folder


def locate(model, given, checkpoint=None):
    """Finds a trained model: its experiment, and the checkpoint to use.

    Args:
      model: a model module; takes over the experiment's configuration.
      given: names of the keys that the command line set; they override it.
      checkpoint: what `checkpoints.find` accepts; the experiment's newest if None.

    Returns:
      (the experiment's folder, the checkpoint's prefix).

    Raises:
      UserError: where there is no checkpoint.
    """
    if checkpoint is None:
        folder = directory(model.config)
        prefix = checkpoints.latest(os.path.join(folder, "checkpoint"))
        if prefix is None:
            raise UserError(
                f"No checkpoint in {folder}: train one first with python -m trainer.main "
                f"--model={model.__name__}, or name one with --checkpoint."
            )
    else:
        prefix = checkpoints.find(checkpoint)
        folder = os.path.dirname(os.path.abspath(prefix))
        while os.path.basename(folder) in ("best", "checkpoint"):
            folder = os.path.dirname(folder)
    return restore_config(model, given, folder), prefix


def check_resume(folder, config, allow_change=False):
    """Compares the configuration with the one that this experiment began with.

    Returns:
      Lines that say what changed.

    Raises:
      UserError: for a change that makes a different run: a key declared `fixed`, or of `dataset.`.
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
            "not be the same run. Use another --trainer.experiment_name, start over with --fresh, "
            "or insist with --allow_config_change."
        )
    return lines


def check_data(folder, fingerprint, allow_change=False):
    """Raises `UserError` where the experiment's last start read other data than this one."""
    before = (last_start(folder) or {}).get("data_fingerprint", fingerprint)
    if before != fingerprint and not allow_change:
        raise UserError(
            f"datasets()['trn'] yields other shapes or types than when {folder} was trained (data "
            f"{before}, now {fingerprint}), so its place cannot be resumed. Restore the code, "
            "start over with --fresh, or insist with --allow_config_change."
        )


def write_config(folder, config):
    """Writes config.txt for people and config.json for machines."""
    write_text(os.path.join(folder, "config.txt"), config.to_text())
    write_text(os.path.join(folder, "config.json"), config.to_json())


def write_provenance(folder, model, start_step, devices, data_fingerprint):
    """Adds this start to provenance.json: code, command line, versions, host, devices, data.

    Uncommitted changes of the code are kept beside it as code-<start>.diff.
    """
    path = os.path.join(folder, "provenance.json")
    starts = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            starts = json.load(file)
    where = os.path.dirname(os.path.abspath(model.__file__))
    changes = _git(where, "diff", "HEAD")
    if changes:
        write_text(os.path.join(folder, f"code-{len(starts)}.diff"), changes + "\n")
    starts.append(
        {
            "model": model.__name__,
            "start_step": start_step,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": [sys.executable, *sys.orig_argv[1:]],
            "git_commit": _git(where, "rev-parse", "HEAD"),
            "git_diff": f"code-{len(starts)}.diff" if changes else None,
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "host": platform.node(),
            "devices": devices,
            "data_fingerprint": data_fingerprint,
        }
    )
    write_text(path, json.dumps(starts, indent=1) + "\n")


def _git(folder, *arguments):
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
