"""The record of a step that produced a NaN or an infinity, and how to replay it."""

import os
import sys
import zipfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import files, helptext
from trainer.config import UserError, optional

v1 = tf.compat.v1

_CHANGING = ("fresh", "yes", "fallback")  # flags that cannot be combined with `--debug`

NOT_FINITE = "The loss or a gradient is not finite"


def found_in(error: tf.errors.OpError) -> bool:
    """Returns whether an error of the graph reports a value that is not finite."""
    return NOT_FINITE in error.message or " in summary histogram" in error.message


def fetches(inputs, outputs, reported, gradients) -> dict[str, tf.Tensor]:
    """Returns the contents of the record of a step that is not finite: {name: tensor}.

    Args:
      inputs: the batch; entries of one dimension (ids, labels) are recorded.
      outputs: the joined outputs; entries of one or two dimensions are recorded.
      reported: {name: scalar tensor}, all recorded.
      gradients: [(gradient, variable)]; their norms are recorded.
    """
    small = {k: v for k, v in inputs.items() if v.shape.rank == 1}
    terms = {k: v for k, v in dict.items(outputs) if tf.is_tensor(v) and v.shape.rank in (1, 2)}
    norms = {f"gradient_norm/{v.op.name}": tf.norm(tf.convert_to_tensor(g)) for g, v in gradients}
    return {**small, **terms, **reported, **norms}


def record(
    folder: str | None,
    step: int,
    session: v1.Session,
    batch: Callable[[], object] | None,
    tensors: dict[str, tf.Tensor],
) -> str:
    """Writes `flight/step-<n>.npz` from the session whose update was refused.

    It runs the step's forward pass once more, which may change other state of the model.

    Args:
      folder: the experiment's folder; None on a worker without one, which only takes part.
      step: the update that was refused.
      session: the session; its weights are those before that update.
      batch: a function that loads the step's batch again; None if the data cannot be read a second
        time.
      tensors: {name: tensor} to record, the result of `fetches`.

    Returns:
      A phrase that names the values that are not finite.
    """
    path, values = _path(folder or "", step), {}
    what = "its values could not be read again"
    with optional(f"the record {path}"):
        if batch:
            batch()
            values = session.run(tensors)
            bad = [name for name, value in values.items() if not _finite(value)]
            what = f"not finite: {', '.join(bad[:8])}"
        else:
            what = "this model's data cannot be read a second time, so only the step is recorded"
        if folder is None:
            return what
        if not os.path.isdir(os.path.dirname(path)):
            os.mkdir(os.path.dirname(path))  # not makedirs: a deleted experiment stays deleted
        _write(path, {"step": np.asarray(step)}, values)
    return what


def refusal(folder: str, step: int, what: str, saved: bool) -> UserError:
    """Returns the error that ends the run.

    Args:
      folder: the experiment's folder.
      step: the update that was refused.
      what: the result of `record`.
      saved: whether the weights before that update are saved.
    """
    kept = "the weights before it are saved" if saved else "the last checkpoint is unchanged"
    return UserError(
        f"{NOT_FINITE} in step {step} ({what}). The update was not made, {kept}, and the step's "
        f"record is {_path(folder, step)}. A lower learning rate or clipped gradients may help. To "
        f"replay the step: {replay_command(step)}"
    )


def _path(folder, step):
    return os.path.join(folder, "flight", f"step-{step}.npz")


def replay_command(step: int) -> str:
    """Returns this program's command line, quoted for a shell, changed to replay a step.

    The command deletes nothing: flags that change an experiment are removed, or switched off if a
    flag file may set them. For a script, which may have other effects, the call is returned.
    """
    if helptext.running() != "trainer.main":
        return f"loop.train(model, config, debug=True, replay_step={step})"
    words = []
    for word in sys.argv[1:]:
        name = word.lstrip("-").split("=")[0] if word.startswith("-") else ""
        if name not in (*_CHANGING, "f", "debug", "d", "replay_step"):
            words.append(word)
    if any("flagfile" in word for word in words):
        words += [f"--no{name}" for name in _CHANGING]
    words += ["--debug", f"--replay_step={step}"]
    return helptext.command("train", "trainer.main", *words)


def _write(path, first, values):
    """Writes an .npz file; a name that is in use gets the prefix `batch.`.

    `numpy.savez` takes names as keyword arguments, which fails for an entry called `file`.
    """
    named = dict(first)
    for name, value in values.items():
        name = name.replace("/", ".")
        named[f"batch.{name}" if name in named else name] = _array(value)
    with files.published(path) as out, zipfile.ZipFile(out, "w") as archive:
        for name, value in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, value, allow_pickle=False)


def _array(value):
    """Converts strings, which a session returns as objects that only pickle could store."""
    value = np.asarray(value)
    return value.astype(np.bytes_) if value.dtype == object else value


def _finite(value):
    value = np.asarray(value)
    return value.dtype.kind not in "fc" or np.isfinite(value).all()
