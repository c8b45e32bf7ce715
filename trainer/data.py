"""Checks a model's datasets: what they must yield, and errors while they are read."""

import contextlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import tensorflow as tf

from trainer import checkpoints, input_state
from trainer.config import Config, UserError

v1 = tf.compat.v1


def load_datasets(
    model: ModuleType,
    first_batch: tf.Tensor,
    seed: int = 0,
    resumed: str | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[dict[str, tf.data.Dataset], bool]:
    """Returns the model's datasets for training, and whether they can start at any batch.

    If `datasets` takes `start_step`, the number of consumed batches is the whole state of the
    input, and resuming needs nothing else.

    Args:
      model: the model module.
      first_batch: number of batches consumed so far, an int64 scalar tensor.
      seed: graph-level seed of the run.
      resumed: prefix of the checkpoint that the run resumes from, or None.
      part: (number of this worker, number of workers) if there are several. `datasets` must then
        take it, and divide each training batch before decoding its images.

    Returns:
      ({"trn": dataset, and "vld" if the model has it}, whether `datasets` takes `start_step`).

    Raises:
      UserError: `datasets()` fails on a file or value, or has no "trn".
    """
    takes = inspect.signature(model.datasets).parameters
    restartable, options = "start_step" in takes, {}
    if part:
        if not ("part" in takes and restartable):
            raise UserError(
                f"{model.__name__}.datasets() must take start_step and part, to train on several "
                "workers (TF_CONFIG): each reads its part of every batch."
            )
        options = {"part": part}
    if resumed and not restartable and not input_state.saved(resumed):
        # The position in the data is lost. Another seed at least avoids the same batches.
        v1.set_random_seed(seed + checkpoints.step_of(resumed))
    try:
        known = model.datasets(first_batch, **options) if restartable else model.datasets()
        # Read only these: a model may create each dataset on demand.
        datasets = {name: known[name] for name in ("trn", "vld") if name in known}
    except (ValueError, OSError) as error:
        raise UserError(f"{model.__name__}.datasets(): {error}") from error
    v1.set_random_seed(seed)
    if "trn" not in datasets:
        raise UserError(f"{model.__name__}.datasets() has no 'trn' among {', '.join(known)}.")
    return datasets, restartable


def check_batch(inputs: Any, config: Config, workers: int = 1) -> None:
    """Raises `UserError` unless a batch is a dict of a worker's share of `model.batch_size`.

    Args:
      inputs: an element of `datasets()["trn"]`: a dict of tensors or of their specs.
      config: a `Config`.
      workers: number of workers that share the batch.
    """
    if not isinstance(inputs, dict):
        raise UserError(f"datasets()['trn'] yields {type(inputs).__name__}; it must yield dicts.")
    for name, tensor in inputs.items():
        size, whole = tensor.shape[0], config["model.batch_size"]
        if size is not None and size != whole // workers:
            among = f" for {workers} workers" if workers > 1 else ""
            raise UserError(
                f"datasets()['trn'] yields {size} examples of {name!r} per batch, but "
                f"model.batch_size={whole}{among}."
            )


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Turns an error inside the input pipeline into a one-line `UserError`.

    Such an error does not affect the weights. Errors of other parts of the graph are not changed.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not re.search(r"\[\[(\{\{node )?next_batch|MakeIterator", error.message):
            raise
        if isinstance(error, tf.errors.OutOfRangeError):
            raise UserError(
                "datasets()['trn'] ended. Add .repeat(): model.num_steps ends training."
            ) from None
        # TensorFlow first names the dataset that failed, and last the values it compared.
        text = re.sub(r"^Error in user-defined .*?iterator: \S+: ", "", error.message)
        text = re.sub(r"^assertion failed: \[(.*?)\]( \[.*)?$", r"\1", text.split("\n")[0])
        raise UserError(text.replace("\\'", "'")) from error
