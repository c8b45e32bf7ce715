"""Checkpoints: `<folder>/model-<step>`, written beside the running loop and published by rename."""

import os
import re
import shutil
import threading

import tensorflow as tf

from trainer.config import UserError
from trainer.files import sync, write_text

v1 = tf.compat.v1

_AVERAGE = "/ExponentialMovingAverage"


def steps(folder):
    """Returns the steps of the complete checkpoints in a folder, ascending."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = (re.fullmatch(r"model-(\d+)\.index", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def latest(folder):
    """Returns the newest checkpoint's prefix, `<folder>/model-<step>`, or None."""
    found = steps(folder)
    return os.path.join(folder, f"model-{found[-1]}") if found else None


def find(path):
    """Returns the prefix of the checkpoint that `path` means: a prefix, one of its files, a folder
    of checkpoints or an experiment.

    Raises:
      UserError: where there is none.
    """
    path = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", os.fspath(path))
    if os.path.exists(f"{path}.index"):
        return path
    for folder in (path, os.path.join(path, "checkpoint")):
        prefix = latest(folder) or tf.train.latest_checkpoint(folder)
        if prefix:
            return prefix
    raise UserError(f"No checkpoint at {path!r}: name one as <folder>/model-<step>, or its folder.")


def step_of(prefix):
    """Returns the number of completed updates that a prefix's name gives, or 0."""
    match = re.search(r"-(\d+)$", prefix)
    return int(match[1]) if match else 0


def shapes(prefix):
    """Returns {variable name: shape} of a checkpoint.

    Raises:
      UserError: where it cannot be read.
    """
    try:
        return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise UserError(
            f"Checkpoint {prefix} cannot be read ({str(error).splitlines()[0]}). Move its files "
            "away to fall back on an older one."
        ) from None


def restore(session, prefix, variables, *, averages=False):
    """Loads variables from a checkpoint, after checking every name and shape.

    Args:
      session: a `tf.compat.v1.Session`.
      prefix: checkpoint prefix.
      variables: the variables to load.
      averages: take a variable's moving average instead where the checkpoint holds one.

    Raises:
      UserError: listing what is missing or has another shape; nothing is loaded then. (TensorFlow
        itself restores a wrong shape into a resource variable without a word.)
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
        raise UserError(
            f"Checkpoint {prefix} does not fit this model: {'; '.join(wrong[:6])}{more}. Use the "
            "configuration it was trained with, another trainer.experiment_name, or --fresh."
        )
    _load(session, prefix, names)


def load_matching(session, prefix, variables):
    """Loads what fits from another model's checkpoint.

    Returns:
      {"loaded" | "missing" | "mismatched" | "ignored": [names]}: what was loaded, what the
      checkpoint lacks, what has another shape there, and what only the checkpoint has.

    Raises:
      UserError: where nothing fits.
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
    # In as few runs as can be: TensorFlow looks through the whole graph for each new one. Variables
    # that share the tensor of their initial value, through which they are loaded, take turns.
    values, turns = tf.train.load_checkpoint(prefix), []
    with session.graph.as_default():
        for name, variable in names.items():
            entry = variable.initializer.inputs[1]
            turn = next((turn for turn in turns if entry not in turn), None)
            if turn is None:
                turns.append(turn := {})
            turn[entry] = name
        for turn in turns:
            initializers = [names[name].initializer for name in turn.values()]
            feed = {entry: values.get_tensor(name) for entry, name in turn.items()}
            session.run(initializers, feed)


class Writer:
    """Writes checkpoints of one session in the background.

    `save` stalls the loop only for a copy of the variables: a thread writes them under a temporary
    name and renames, so that what has a final name is whole. Build it before the loop starts; it
    adds its operation to the graph.

    Args:
      session: the session whose variables are saved.
      variables: the variables to save.
      folder: where; created by the caller.
      max_to_keep: how many of the newest stay.
      input_saver: `tf.compat.v1.train.Saver` of the input's state, saved beside the variables as
        `input-<step>`, or None.
    """

    def __init__(self, session, variables, folder, max_to_keep, input_saver=None):
        self._input_saver = input_saver
        self._session, self._folder, self._max_to_keep = session, folder, max(max_to_keep, 1)
        self._thread, self._error = None, None
        for name in os.listdir(folder):  # what a kill in the middle of a save has left
            if name.startswith(".writing-"):
                shutil.rmtree(os.path.join(folder, name))
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

    def save(self, step, *, wait=False, best=False):
        """Saves the variables as they are now, as `model-<step>`.

        Args:
          step: number of completed updates.
          wait: return only when the checkpoint is published.
          best: keep it in `best/` too, in place of the one there.

        Raises:
          UserError: where this or the previous save failed; earlier checkpoints are untouched.
        """
        self.wait()
        values = self._snapshot()
        if self._input_saver:  # small, and must be of this very moment
            os.makedirs(self._temporary(step), exist_ok=True)
            self._input_saver.save(
                self._session,
                os.path.join(self._temporary(step), f"input-{step}"),
                write_meta_graph=False,
                write_state=False,
            )
        self._thread = threading.Thread(target=self._publish, args=(step, values, best))
        self._thread.start()
        if wait:
            self.wait()

    def wait(self):
        """Waits until the last save is published; raises `UserError` where it failed."""
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error and not isinstance(error, OSError | tf.errors.OpError):
            raise error
        if error:
            raise UserError(
                f"Cannot write a checkpoint to {self._folder}: {str(error).splitlines()[0]}. "
                f"The last complete one is {latest(self._folder)}. Free space or mend the folder, "
                "then run the same command to resume."
            )

    def _temporary(self, step):
        return os.path.join(self._folder, f".writing-{step}")

    def _publish(self, step, values, best):
        name = f"model-{step}"
        temporary = self._temporary(step)
        try:
            os.makedirs(temporary, exist_ok=True)
            self._write(os.path.join(temporary, name), *values)
            # The index last: its presence is what makes a checkpoint exist.
            files = sorted(os.listdir(temporary))
            for file in files:
                sync(os.path.join(temporary, file))
            for file in files:
                os.replace(os.path.join(temporary, file), os.path.join(self._folder, file))
            sync(self._folder)
            if best:
                self._keep_best(name, files)
            self._forget_old()
        except Exception as error:  # raised by the next wait(), in the loop's thread
            self._error = error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _keep_best(self, name, files):
        folder = os.path.join(self._folder, "best")
        os.makedirs(folder, exist_ok=True)
        for file in files:
            target = os.path.join(folder, file)
            if os.path.exists(target):
                os.remove(target)
            os.link(os.path.join(self._folder, file), target)
        for file in os.listdir(folder):
            if file not in files:
                os.remove(os.path.join(folder, file))

    def _forget_old(self):
        kept = steps(self._folder)
        for step in kept[: -self._max_to_keep]:
            prefixes = (f"model-{step}.", f"input-{step}.")
            names = [n for n in os.listdir(self._folder) if n.startswith(prefixes)]
            # The index first: what is left of a half-removed checkpoint must not look whole.
            for name in sorted(names, reverse=True):
                os.remove(os.path.join(self._folder, name))
        newest = [f"model-{s}" for s in kept[-self._max_to_keep :]]
        # What tf.train.latest_checkpoint reads; relative, so that the folder can be moved.
        state = f'model_checkpoint_path: "{newest[-1]}"\n'
        state += "".join(f'all_model_checkpoint_paths: "{name}"\n' for name in newest)
        write_text(os.path.join(self._folder, "checkpoint"), state)
