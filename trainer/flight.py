"""The record of a step that produced a NaN or an infinity, and how to replay it."""

import os
import shlex
import sys

import numpy as np
import tensorflow as tf

from trainer.config import UserError

v1 = tf.compat.v1

NOT_FINITE = "The loss or a gradient is not finite"


def fetches(inputs, outputs, reported, gradients):
    """What the record of a step that is not finite holds: {name: tensor}."""
    small = {k: v for k, v in inputs.items() if v.shape.rank == 1}
    terms = {k: v for k, v in outputs.items() if tf.is_tensor(v) and v.shape.rank in (1, 2)}
    norms = {f"gradient_norm/{v.op.name}": tf.norm(tf.convert_to_tensor(g)) for g, v in gradients}
    return {**small, **terms, **reported, **norms}


def record(folder, step, session, batch, tensors):
    """Writes `flight/step-<n>.npz` from the session whose update was refused.

    Args:
      folder: the experiment.
      step: the update that could not be done.
      session: the session; its weights are those before that update.
      batch: a function that makes the step's batch current again, or None where the data cannot be
        read a second time.
      tensors: {name: tensor} to record, as `fetches` returns them.

    Returns:
      A `UserError` that says what was found, where it is, and how to replay the step.
    """
    path = os.path.join(folder, "flight", f"step-{step}.npz")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    what = "this model's data cannot be read a second time, so only the step is recorded"
    values = {}
    if batch:
        batch()
        values = session.run(tensors)
        bad = [name for name, value in values.items() if not _finite(value)]
        what = f"not finite: {', '.join(bad[:8])}"
    temporary = path.replace(".npz", ".writing.npz")
    np.savez(temporary, step=step, **{k.replace("/", "."): _array(v) for k, v in values.items()})
    os.replace(temporary, path)
    again = ["python", *sys.orig_argv[1:], "--debug", f"--replay_step={step}"]
    return UserError(
        f"{NOT_FINITE} in step {step} ({what}). The update was not made and nothing was saved "
        f"over the last good checkpoint; the step's record is {path}. A lower learning rate or "
        f"clipped gradients may help. To replay the step: {shlex.join(again)}"
    )


def _array(value):
    """Strings come from a session as objects, which only pickle could store."""
    value = np.asarray(value)
    return value.astype(np.bytes_) if value.dtype == object else value


def _finite(value):
    value = np.asarray(value)
    return value.dtype.kind not in "fc" or np.isfinite(value).all()
