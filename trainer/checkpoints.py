"""Checkpoints: `<folder>/model-<step>`, written in the background and published by rename."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent import futures

import numpy as np
import tensorflow as tf

from trainer import files
from trainer.config import UserError
from trainer.files import sync, write_text

v1 = tf.compat.v1

_AVERAGE = "/ExponentialMovingAverage"
_PARTS = r"(index|data-\d+-of-\d+)"

_KIND = "set of checkpoints"

# The paths in a folder of checkpoints that this module writes.
_WRITTEN = (
    rf"checkpoint|(best/)?(model|input)-\d+\.{_PARTS}(\.damaged)?|\.writing-\d+/.*"
    r"|(best/)?\.[^/]*\.tmp"
)


def claim(folder: str) -> None:
    """Creates a folder of checkpoints and marks it as ours.

    Raises:
      ValueError: the folder contains something else.
    """
    files.claim(folder, _KIND, earlier=all_ours)


def discard(folder: str) -> list[str]:
    """Removes a folder's checkpoints, and the folder if nothing else is in it.

    Returns:
      Paths within the folder of the files that were kept.
    """
    return files.discard(folder, _KIND, _WRITTEN)


def all_ours(folder: str | os.PathLike) -> bool:
    """Returns whether a folder exists and contains only files of this module."""
    return os.path.isdir(folder) and all(
        re.fullmatch(_WRITTEN, os.path.relpath(os.path.join(at, name), folder))
        for at, _, names in os.walk(folder)
        for name in names
        if name not in (files.MARK, files.LOCK)
    )


def steps(folder: str | os.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, ascending."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (re.fullmatch(r"model-(\d+)\.index", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def latest(folder: str | os.PathLike) -> str | None:
    """Returns the newest checkpoint's prefix, `<folder>/model-<step>`, or None."""
    found = steps(folder)
    return os.path.join(folder, f"model-{found[-1]}") if found else None


def find(path: str | os.PathLike) -> str:
    """Returns the prefix of the checkpoint at a path.

    Args:
      path: a prefix, one of the checkpoint's files, a folder of checkpoints or an experiment.

    Raises:
      UserError: there is none.
    """
    path = os.path.expanduser(os.fspath(path))
    path = re.sub(rf"\.(meta|{_PARTS})$", "", path)
    if os.path.exists(f"{path}.index"):
        return path
    for folder in (path, os.path.join(path, "checkpoint")):
        prefix = latest(folder) or _named_otherwise(folder)
        if prefix:
            return prefix
    raise UserError(
        f"No checkpoint at {path!r}: train that model first, or give a checkpoint as "
        "<folder>/model-<step>, or its folder."
    )


def _named_otherwise(folder):
    """The newest checkpoint by TensorFlow's Saver in a folder, or None.

    `tf.train.latest_checkpoint` would interpret the folder's name as a glob pattern.
    """
    state = tf.train.get_checkpoint_state(folder)
    prefix = state and state.model_checkpoint_path
    return prefix if prefix and os.path.exists(f"{prefix}.index") else None


def step_of(prefix: str) -> int:
    """Returns the number of completed updates in a prefix's name, or 0."""
    match = re.search(r"-(\d+)$", prefix)
    return int(match[1]) if match else 0


@contextlib.contextmanager
def literal(prefix: str) -> Iterator[str]:
    """Yields a prefix of a checkpoint without pattern characters.

    TensorFlow's readers interpret `[`, `*` and `?` in a prefix; such a checkpoint is linked into a
    temporary folder.
    """
    if not re.search(r"[\[*?\\]", os.path.abspath(prefix)):
        yield prefix
        return
    folder, name = os.path.split(os.path.abspath(prefix))
    with tempfile.TemporaryDirectory() as safe:
        for file in os.listdir(folder):
            if file.startswith(f"{name}."):
                os.symlink(os.path.join(folder, file), os.path.join(safe, file))
        yield os.path.join(safe, name)


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _reader(prefix):
    """Yields the `tf.train.CheckpointReader` of a checkpoint; damage becomes a `UserError`."""
    try:
        with literal(prefix) as path:
            yield tf.train.load_checkpoint(path)
    except Exception as error:  # TensorFlow's reader raises many kinds, such as IndexError
        raise UserError(
            f"Checkpoint {prefix} is damaged and cannot be read ({_first_line(error)}). "
            "Resume from the previous one with --fallback, or give another with --checkpoint."
        ) from None


def shapes(prefix: str) -> dict[str, list[int]]:
    """Returns {variable name: shape} of a checkpoint.

    Raises:
      UserError: it cannot be read.
    """
    with _reader(prefix) as reader:
        return reader.get_variable_to_shape_map()


def values(prefix: str, names: Iterable[str], *, averages: bool = False) -> list[np.ndarray]:
    """Returns the values of variables in a checkpoint.

    Args:
      prefix: checkpoint prefix.
      names: names of the variables.
      averages: return a variable's moving average instead if the checkpoint has one.

    Raises:
      UserError: a variable is missing, or the data are damaged.
    """
    saved = shapes(prefix)
    names = [n + _AVERAGE if averages and n + _AVERAGE in saved else n for n in names]
    if missing := [n for n in names if n not in saved]:
        raise UserError(_misfit(prefix, f"{missing[0]} is missing"))
    with _reader(prefix) as reader:
        return [reader.get_tensor(name) for name in names]


def _misfit(prefix, what):
    return (
        f"Checkpoint {prefix} does not fit this model: {what}. Use the configuration of its "
        "training, another trainer.experiment_name, or --fresh."
    )


def fall_back(folder: str) -> list[str]:
    """Sets damaged checkpoints aside, newest first, until one is undamaged.

    Args:
      folder: the folder of checkpoints.

    Returns:
      Prefixes of the damaged checkpoints; their files get the suffix `.damaged`.

    Raises:
      UserError: all checkpoints are damaged; nothing was renamed.
    """
    damaged = []
    for step in reversed(steps(folder)):
        prefix = os.path.join(folder, f"model-{step}")
        try:
            with _reader(prefix) as reader:
                for name in reader.get_variable_to_shape_map():
                    reader.get_tensor(name)  # compares checksums
            break
        except UserError:
            damaged.append(prefix)
    else:
        if damaged:
            raise UserError(f"No checkpoint in {folder} can be read; start over with --fresh.")
    for prefix in damaged:
        # The index first: without it, the other files are not a checkpoint.
        for name in sorted(os.listdir(folder), key=lambda name: not name.endswith(".index")):
            if re.fullmatch(rf"(model|input)-{step_of(prefix)}\.{_PARTS}", name):
                path = os.path.join(folder, name)
                os.replace(path, f"{path}.damaged")
    return damaged


def restore(
    session: v1.Session,
    prefix: str,
    variables: Iterable[tf.Variable],
    *,
    averages: bool = False,
) -> None:
    """Loads variables from a checkpoint, after checking every name and shape.

    Args:
      session: a `tf.compat.v1.Session`.
      prefix: checkpoint prefix.
      variables: the variables to load.
      averages: load a variable's moving average instead if the checkpoint has one.

    Raises:
      UserError: variables are missing or have another shape, or the data are damaged; then nothing
        is loaded. (TensorFlow itself silently restores a wrong shape into a resource variable.)
    """
    saved = shapes(prefix)
    names = {}
    for variable in variables:
        name = variable.op.name
        names[name + _AVERAGE if averages and name + _AVERAGE in saved else name] = variable
    wrong = [f"{n} is missing" for n in names if n not in saved]
    wrong += [
        f"{n} is {saved[n]} there and {v.shape.as_list()} here"
        for n, v in names.items()
        if n in saved and saved[n] != v.shape.as_list()
    ]
    if wrong:
        more = f", and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise UserError(_misfit(prefix, "; ".join(wrong[:6]) + more))
    _load(session, prefix, names)


def load_matching(
    session: v1.Session, prefix: str, variables: Iterable[tf.Variable]
) -> dict[str, list[str]]:
    """Loads matching variables from another model's checkpoint.

    Args:
      session: a `tf.compat.v1.Session`.
      prefix: checkpoint prefix.
      variables: the variables to load.

    Returns:
      {"loaded" | "missing" | "mismatched" | "ignored": [names]}: loaded variables, variables that
      are not in the checkpoint, variables with another shape there, and variables only there.

    Raises:
      UserError: nothing matches, or the checkpoint is damaged.
    """
    saved = shapes(prefix)
    ours = {v.op.name: v for v in variables}
    report = {
        "loaded": [n for n, v in ours.items() if saved.get(n) == v.shape.as_list()],
        "missing": [n for n in ours if n not in saved],
        "mismatched": [n for n, v in ours.items() if n in saved and saved[n] != v.shape.as_list()],
        "ignored": [n for n in saved if n not in ours],
    }
    if not report["loaded"]:
        raise UserError(f"model.weights_load_path: no variable of {prefix} fits this model.")
    _load(session, prefix, {n: ours[n] for n in report["loaded"]})
    return report


def _load(session, prefix, names):
    # In as few runs as possible: TensorFlow searches the whole graph for each new one. Variables
    # are loaded through the tensors of their initial values; variables that share one need separate
    # runs.
    with _reader(prefix) as reader:
        values = {name: reader.get_tensor(name) for name in names}
    turns = []
    with session.graph.as_default():
        for name, variable in names.items():
            entry = variable.initializer.inputs[1]
            turn = next((turn for turn in turns if entry not in turn), None)
            if turn is None:
                turns.append(turn := {})
            turn[entry] = name
        for turn in turns:
            initializers = [names[name].initializer for name in turn.values()]
            feed = {entry: values.pop(name) for entry, name in turn.items()}
            session.run(initializers, feed)


class Writer:
    """Writes checkpoints of one session in the background.

    `save` stalls the loop only while the variables are copied. A thread writes them under a
    temporary name and renames the files, so files with their final name are complete. Create it
    before the loop starts, since it adds operations to the graph, and close it at the end.

    Args:
      session: the session whose variables are saved.
      variables: the variables to save.
      folder: an existing folder of checkpoints, or an empty folder. Files that a killed program
        left half written or half removed are deleted.
      max_to_keep: number of newest checkpoints to keep.
      input_saver: `tf.compat.v1.train.Saver` of the input's state, saved beside the variables as
        `input-<step>`; None if the step is the whole state.

    Raises:
      ValueError: the folder contains something else.
    """

    def __init__(
        self,
        session: v1.Session,
        variables: list[tf.Variable],
        folder: str,
        max_to_keep: int,
        input_saver: v1.train.Saver | None = None,
    ):
        self._session, self._folder, self._max_to_keep = session, folder, max_to_keep
        self._variables = variables
        self._input_saver = input_saver
        # Waits for work: starting a thread per checkpoint would cost the loop more than the copy.
        self._pool = futures.ThreadPoolExecutor(1, "checkpoints")
        self._pool.submit(int).result()
        self._publishing = None
        claim(folder)
        # Kept open, so that no other folder gets this folder's inode.
        self._opened = os.open(folder, os.O_RDONLY)
        self._clean_up()
        names = [v.op.name for v in variables]
        with session.graph.as_default(), v1.device("/device:CPU:0"), v1.name_scope("save"):
            values = [v.read_value() for v in variables]
            inputs = [v1.placeholder(v.dtype.base_dtype, v.shape) for v in variables]
            prefix = v1.placeholder(tf.string, [])
            save = tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=inputs,
            )
        self._snapshot = session.make_callable(values)
        self._snapshot()  # the first call prepares the graph, which would stall the loop later
        self._write = session.make_callable(save, [prefix, *inputs])

    def _clean_up(self):
        """Removes temporary folders, and files of checkpoints that have no index."""
        whole = "|".join(map(str, steps(self._folder))) or "x"
        self._remove(rf"\.writing-\d+/.*|\..*\.tmp|(model|input)-(?!({whole})\.)\d+\.{_PARTS}")

    def _remove(self, pattern):
        files.remove(self._folder, _KIND, pattern)

    def save(self, step: int, *, wait: bool = False, best: bool = False) -> None:
        """Saves the current values of the variables as `model-<step>`.

        Args:
          step: number of completed updates.
          wait: return only when the checkpoint is published.
          best: also keep it in `best/`, replacing the one there.

        Raises:
          UserError: this or the previous save failed; earlier checkpoints are not changed.
        """
        self.wait()
        self._check_folder()
        if not os.path.isdir(self._temporary(step)):
            os.mkdir(self._temporary(step))  # not makedirs: a deleted experiment stays deleted
        values = self._snapshot()
        if self._input_saver:  # small, and must be of the same moment
            self._input_saver.save(
                self._session,
                os.path.join(self._temporary(step), f"input-{step}"),
                write_meta_graph=False,
                write_state=False,
            )
        self._publishing = self._pool.submit(self._publish, step, values, best)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is published; raises `UserError` if it failed."""
        error = self._publishing.exception() if self._publishing else None
        self._publishing = None
        if error and not isinstance(error, OSError | ValueError | tf.errors.OpError):
            raise error
        if error:
            raise UserError(
                f"Cannot write a checkpoint to {self._folder}: {_first_line(error)}. "
                f"The last complete one is {latest(self._folder)}. Free space or repair the "
                "folder, then run the same command to resume."
            )

    def close(self) -> None:
        """Waits like `wait`, and closes the folder."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            os.close(self._opened)

    def finite(self, own_state: Iterable[str] = ()) -> bool:
        """Returns whether every variable is finite, after repairing the model's other state.

        Args:
          own_state: names of variables that the model itself changes in each step, such as a memory
            of embeddings. If one of them is not finite, all of them are reset to their values in
            the newest checkpoint, otherwise to their initial values.
        """
        ours = {v.op.name: v for v in self._variables}
        wrong = {
            name
            for name, value in zip(ours, self._snapshot(), strict=True)
            if value.dtype.kind in "fc" and not np.isfinite(value).all()
        }
        state = {name: ours[name] for name in own_state if name in ours}
        if wrong and wrong <= state.keys():
            if prefix := latest(self._folder):
                _load(self._session, prefix, state)
            else:
                self._session.run([v.initializer for v in state.values()])
            return True
        return not wrong

    def keep_best(self, step: int | None) -> None:
        """Repairs `best/` after a kill between publishing the best checkpoint and keeping it.

        Args:
          step: the step of the best checkpoint so far, None if there is none.
        """
        if step in steps(os.path.join(self._folder, "best")):
            self._forget_others(step)
        elif step in steps(self._folder):
            self._keep_best(step)

    def _check_folder(self):
        """Raises `UserError` if the folder was deleted, or replaced by another one."""
        try:
            same = os.path.samestat(os.stat(self._folder), os.fstat(self._opened))
        except FileNotFoundError:
            same = False
        if not same:
            raise UserError(
                f"{self._folder} was removed or replaced during the run. Nothing is saved any more."
            )

    def _temporary(self, step):
        return os.path.join(self._folder, f".writing-{step}")

    def _publish(self, step, values, best):
        name = f"model-{step}"
        temporary = self._temporary(step)
        try:
            self._write(os.path.join(temporary, name), *values)
            # The index last: a checkpoint exists if its index exists.
            names = sorted(os.listdir(temporary))
            for file in names:
                sync(os.path.join(temporary, file))
            for file in names:
                os.replace(os.path.join(temporary, file), os.path.join(self._folder, file))
            sync(self._folder)
            if best:
                self._keep_best(step)
            self._forget_old()
        finally:
            self._remove(rf"\.writing-{step}/.*")

    def _keep_best(self, step):
        """Links the files of a checkpoint into `best/`, then removes older ones."""
        folder = os.path.join(self._folder, "best")
        os.makedirs(folder, exist_ok=True)
        for file in sorted(os.listdir(self._folder)):
            if re.fullmatch(rf"(model|input)-{step}\.{_PARTS}", file):
                files.link(os.path.join(self._folder, file), os.path.join(folder, file))
        sync(folder)
        self._forget_others(step)

    def _forget_others(self, step):
        """Removes all but a step's checkpoint from `best/`, index first: see `_forget_old`."""
        others = rf"best/(model|input)-(?!{step}\.)\d+"
        self._remove(rf"{others}\.index")
        self._remove(rf"{others}\.{_PARTS}|best/\..*\.tmp")

    def _forget_old(self):
        kept = steps(self._folder)
        newest = [f"model-{s}" for s in kept[-self._max_to_keep :]]
        # The file that tf.train.latest_checkpoint reads; relative, so that the folder can be moved.
        state = f'model_checkpoint_path: "{newest[-1]}"\n'
        state += "".join(f'all_model_checkpoint_paths: "{name}"\n' for name in newest)
        write_text(os.path.join(self._folder, "checkpoint"), state)
        if old := "|".join(map(str, kept[: -self._max_to_keep])):
            # The index first: a half-removed checkpoint must not look complete.
            self._remove(rf"model-({old})\.index")
            self._remove(rf"(model|input)-({old})\.{_PARTS}")
