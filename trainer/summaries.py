"""What goes to TensorBoard: scalars always, histograms and pictures as configured."""

import os

import tensorflow as tf

v1 = tf.compat.v1


def merged(reported, inputs, outputs, grads_and_vars, config):
    """Returns the one summary op of the training graph, a string scalar tensor.

    Args:
      reported: dict of scalar tensors.
      inputs: the global batch; a [B, H, W, C] entry `image` is shown.
      outputs: the joined outputs; an int [3] entry `hardest_triplet` (rows of anchor, positive,
        negative in the batch) is shown side by side.
      grads_and_vars: [(gradient, variable)], for histograms.
      config: a `Config`.
    """
    model_summaries = v1.get_collection(v1.GraphKeys.SUMMARIES)  # the first tower's only
    with v1.device("/device:CPU:0"):
        own = [v1.summary.scalar(name, value) for name, value in reported.items()]
        if config["trainer.summary_histograms"]:
            for gradient, variable in grads_and_vars:
                name = variable.op.name
                own.append(v1.summary.histogram(f"weights/{name}", variable))
                own.append(v1.summary.histogram(f"gradients/{name}", gradient))
        image = inputs.get("image")
        if config["trainer.summary_images"] and _is_picture(image):
            own.append(v1.summary.image("input", image, max_outputs=4))
            triplet = outputs.get("hardest_triplet")
            if triplet is not None:
                own.append(v1.summary.image("hardest_triplet", _side_by_side(image, triplet)))
        return v1.summary.merge([*own, *model_summaries])


def _is_picture(tensor):
    return tensor is not None and tensor.shape.rank == 4 and tensor.shape[-1] in (1, 3, 4)


def _side_by_side(image, rows):
    return tf.concat(tf.unstack(tf.gather(image, rows)), 1)[None]


def open_writers(folder, start_step):
    """Returns {"trn", "vld"} of event writers under `summaries/`.

    The restart mark makes TensorBoard drop what an interrupted run wrote after its checkpoint.
    """
    writers = {}
    for split in ("trn", "vld"):
        writers[split] = v1.summary.FileWriter(os.path.join(folder, "summaries", split))
        restart = v1.SessionLog(status=v1.SessionLog.START)
        writers[split].add_session_log(restart, start_step + 1)
    return writers


def write_scalars(writer, step, values):
    """Writes {name: float} for one step."""
    summary = v1.Summary(
        value=[v1.Summary.Value(tag=name, simple_value=float(v)) for name, v in values.items()]
    )
    writer.add_summary(summary, step)
    writer.flush()
