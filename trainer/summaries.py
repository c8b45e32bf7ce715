"""Summaries for TensorBoard: scalars, and histograms and images if configured."""

import os
import tempfile
import time

import tensorflow as tf

from trainer import files
from trainer.config import optional

v1 = tf.compat.v1

HPARAMS = "events.out.tfevents.hparams"  # event file of a sweep or a trial


def merged(reported, inputs, outputs, grads_and_vars, config) -> tf.Tensor:
    """Returns the summary op of the training graph, a string scalar tensor.

    Args:
      reported: dict of scalar tensors.
      inputs: the global batch; a [B, H, W, C] entry `image` is shown.
      outputs: the joined outputs; an int [3] entry `hardest_triplet` (rows of anchor, positive,
        negative in the batch) is shown side by side.
      grads_and_vars: [(gradient, variable)], for histograms.
      config: a `Config`.
    """
    model_summaries = v1.get_collection(v1.GraphKeys.SUMMARIES)  # only of the first tower
    with v1.device("/device:CPU:0"):
        own = [v1.summary.scalar(name, value) for name, value in reported.items()]
        if config["trainer.summary_histograms"]:
            for gradient, variable in grads_and_vars:
                name = variable.op.name
                own.append(v1.summary.histogram(f"weights/{name}", variable))
                own.append(v1.summary.histogram(f"gradients/{name}", gradient))
        image = inputs.get("image")
        if config["trainer.summary_images"] and _is_image(image):
            own.append(v1.summary.image("input", image, max_outputs=4))
            triplet = outputs.get("hardest_triplet")
            if triplet is not None:
                own.append(v1.summary.image("hardest_triplet", _side_by_side(image, triplet)))
        return v1.summary.merge([*own, *model_summaries])


def _is_image(tensor):
    return tensor is not None and tensor.shape.rank == 4 and tensor.shape[-1] in (1, 3, 4)


def _side_by_side(image, rows):
    return tf.concat(tf.unstack(tf.gather(image, rows)), 1)[None]


class Events:
    """Event files of the splits `trn` and `vld` under `summaries/`.

    If they cannot be written, a warning is printed once and the run continues without them.

    Args:
      folder: the experiment's folder.
      start_step: completed steps. A restart mark there makes TensorBoard drop what an interrupted
        run wrote after its checkpoint.
    """

    def __init__(self, folder: str, start_step: int):
        self._writers: dict[str, v1.summary.FileWriter] = {}
        with optional("TensorBoard's summaries"):
            for split in ("trn", "vld"):
                writer = v1.summary.FileWriter(os.path.join(folder, "summaries", split))
                restart = v1.SessionLog(status=v1.SessionLog.START)
                writer.add_session_log(restart, start_step + 1)
                self._writers[split] = writer

    def write(self, split: str, step: int, summary) -> None:
        """Writes a step's summary: serialized, or a dict {name: float}."""
        if split not in self._writers:
            return
        if isinstance(summary, dict):
            values = [v1.Summary.Value(tag=n, simple_value=float(v)) for n, v in summary.items()]
            summary = v1.Summary(value=values)
        writer = self._writers.pop(split)
        with optional("TensorBoard's summaries"):
            writer.add_summary(summary, step)
            if split == "vld":
                writer.flush()
            self._writers[split] = writer

    def close(self) -> None:
        """Flushes and closes the files."""
        while self._writers:
            with optional("TensorBoard's summaries"):
                self._writers.popitem()[1].close()


def write_hparams(folder: str, space: dict, metric: str, trials: list[dict]) -> None:
    """Writes a sweep for TensorBoard's HParams tab; replaces the files of an earlier call.

    Args:
      folder: folder of the sweep; `tensorboard --logdir` of it shows the tab.
      space: {key: its values; empty for a range of numbers}.
      metric: the validation figure; the trials themselves have written its curves.
      trials: per trial a dict of experiment (its folder), state ('complete', 'fail' or another) and
        params, {key: bool, number or text}.
    """
    from tensorboard.plugins.hparams import api_pb2, summary, summary_v2

    infos = [
        summary_v2.HParam(key, summary_v2.Discrete(values) if values else None)
        for key, values in space.items()
    ]
    # The figure is in the trial's run of that name.
    shown = summary_v2.Metric(metric, group="summaries/vld")
    _write_alone(folder, summary_v2.hparams_config_pb(infos, [shown]))
    status = {"complete": api_pb2.STATUS_SUCCESS, "fail": api_pb2.STATUS_FAILURE}
    for trial in trials:
        name = os.path.basename(trial["experiment"])
        _write_alone(
            trial["experiment"],
            summary_v2.hparams_pb(trial["params"], name),
            summary.session_end_pb(status.get(trial["state"], api_pb2.STATUS_UNKNOWN)),
        )


def _write_alone(folder, *found):
    """Writes an event file of summaries, replacing an earlier one."""
    now = time.time()
    events = [v1.Event(wall_time=now, file_version="brain.Event:2")]
    events += [
        v1.Event(wall_time=now, summary=v1.Summary.FromString(each.SerializeToString()))
        for each in found
    ]
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, HPARAMS)
        with tf.io.TFRecordWriter(path) as writer:
            for event in events:
                writer.write(event.SerializeToString())
        with open(path, "rb") as made, files.published(os.path.join(folder, HPARAMS)) as out:
            out.write(made.read())
