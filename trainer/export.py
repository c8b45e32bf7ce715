"""`python -m trainer.export --model=models.simple`: a trained model as a SavedModel.

    python -m trainer.export --model=M [--checkpoint=PREFIX] [--output=DIR] [--outputs=a,b]

takes the experiment's newest checkpoint unless told, with the moving averages of the weights where
it holds them. The experiment's own config.json is the configuration; flags given here override it.
A model that declares `actions.export.outputs` names its outputs there.
"""

import json
import os
import shutil

from absl import flags

from trainer import quiet

quiet.import_tensorflow()

import tensorflow as tf  # noqa: E402 (after the quiet import)

from trainer import checkpoints, experiment, layers  # noqa: E402
from trainer import config as config_lib  # noqa: E402
from trainer.config import UserError, did_you_mean  # noqa: E402
from trainer.files import sync, write_text  # noqa: E402

v1 = tf.compat.v1

NOTE = os.path.join("assets.extra", "prototrain.json")  # the place SavedModel has for such files


def export(model, checkpoint, output, *, outputs=(), overwrite=False, code=None):
    """Writes a SavedModel with one signature, `serving_default`.

    Its inputs are the placeholders that `model.build(None, False)` makes, as far as the outputs
    depend on them, under their own names; their first dimension, the batch, is free.

    Args:
      model: a model module, configured as it was trained.
      checkpoint: prefix of the checkpoint; moving averages are used where it has them.
      output: folder to create.
      outputs: names of the outputs; by default `embeddings` where the model sets them, otherwise
        the last output with a batch dimension that depends on a variable.
      overwrite: replace an earlier export.
      code: what the note says of the code that trained it, a JSON value.

    Returns:
      The note that the SavedModel carries in assets.extra/prototrain.json, a dict.

    Raises:
      UserError: where the model cannot be served, or the folder is taken.
    """
    output = os.path.abspath(output)
    if os.path.exists(output) and not overwrite:
        raise UserError(
            f"{output} exists: replace it with --overwrite, or choose another --output."
        )
    if os.path.exists(output) and not os.path.exists(os.path.join(output, "saved_model.pb")):
        raise UserError(f"--overwrite: {output} is no SavedModel; it is left alone.")
    with tf.Graph().as_default(), v1.Session() as session:
        built = build(model)
        chosen = choose(model, built, outputs)
        inputs = {p.op.name: p for p in placeholders(chosen.values())}
        _check_batch(model, inputs, chosen)
        checkpoints.restore(session, checkpoint, v1.global_variables(), averages=True)
        note = {
            "model": model.__name__,
            "checkpoint": os.path.abspath(checkpoint),
            "step": checkpoints.step_of(checkpoint),
            "moving_averages": any(
                name.endswith("/ExponentialMovingAverage")
                for name in checkpoints.shapes(checkpoint)
            ),
            "inputs": {name: _describe(tensor) for name, tensor in inputs.items()},
            "outputs": {name: _describe(tensor) for name, tensor in chosen.items()},
            "config": model.config.to_dict(),
            "code": code,
        }
        temporary = f"{output}.writing-{os.getpid()}"
        try:
            _write(session, temporary, inputs, chosen, note)
            _publish(temporary, output)
        except (OSError, tf.errors.OpError) as error:
            raise UserError(f"Cannot write {output}: {str(error).splitlines()[0]}.") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return note


def build(model):
    """Builds `model.build(None, False)` into the default graph; returns its ModelDict."""
    try:
        return layers.ModelDict(model.build(None, False))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{model.__name__}.build(inputs=None) fails ({type(error).__name__}: {error}): without "
            "inputs it must make placeholders, as models.simple does."
        ) from error


def choose(model, built, names=()):
    """Returns {name: tensor} of the outputs to serve; see `export`."""
    tensors = {k: t for k, t in built.items() if tf.is_tensor(t) and t.shape.rank != 0}
    if not tensors:
        raise UserError(f"{model.__name__}.build returns no output with a batch dimension.")
    if not names:
        learned = [k for k, t in tensors.items() if _has_weights(t)] or list(tensors)
        names = ["embeddings" if "embeddings" in tensors else learned[-1]]
    for name in names:
        if name not in tensors:
            raise UserError(
                f"--outputs: {model.__name__} has no output {name!r}; it has "
                f"{', '.join(tensors)}.{did_you_mean(name, tensors)}"
            )
    return {name: tensors[name] for name in names}


def ancestors(tensors):
    """Returns the operations that tensors depend on, their own included, as a list."""
    found, left = {}, [tensor.op for tensor in tensors]
    while left:
        op = left.pop()
        if op.name not in found:
            found[op.name] = op
            left.extend(tensor.op for tensor in op.inputs)
            left.extend(op.control_inputs)
    return list(found.values())


def _has_weights(tensor):
    return any(op.type == "VarHandleOp" for op in ancestors([tensor]))


def placeholders(tensors):
    """Returns the placeholders that tensors depend on, by name."""
    ops = (op for op in ancestors(tensors) if op.type == "Placeholder")
    return [op.outputs[0] for op in sorted(ops, key=lambda op: op.name)]


def _check_batch(model, inputs, outputs):
    if not inputs:
        raise UserError(
            f"{model.__name__}: {', '.join(outputs)} depend on no placeholder, so that there is "
            "nothing to feed."
        )
    for name, tensor in {**inputs, **outputs}.items():
        if tensor.shape.rank is not None and (
            tensor.shape.rank == 0 or tensor.shape[0] is not None
        ):
            raise UserError(
                f"{model.__name__}: {name!r} has shape {_describe(tensor)['shape']}; its first "
                "dimension, the batch, must be free (None) to be served."
            )


def _describe(tensor):
    shape = None if tensor.shape.rank is None else tensor.shape.as_list()
    return {"dtype": tensor.dtype.name, "shape": shape}


def _write(session, folder, inputs, outputs, note):
    builder = v1.saved_model.Builder(folder)
    builder.add_meta_graph_and_variables(
        session,
        [v1.saved_model.SERVING],
        {
            v1.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: (
                v1.saved_model.predict_signature_def(inputs, outputs)
            )
        },
        assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        main_op=v1.tables_initializer(),
        clear_devices=True,
        strip_default_attrs=True,
    )
    builder.save()
    path = os.path.join(folder, NOTE)
    os.makedirs(os.path.dirname(path))
    write_text(path, json.dumps(note, indent=1) + "\n")
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(os.path.join(parent, name))


def _publish(temporary, output):
    """Renames, so that a reader meets the whole old export, the whole new one, or none."""
    old = f"{temporary}.old"
    if os.path.exists(output):
        os.rename(output, old)
    os.rename(temporary, output)
    shutil.rmtree(old, ignore_errors=True)


def define_flags():
    flags.DEFINE_string("model", None, "Model to export: a module name.", short_name="m")
    flags.DEFINE_string("checkpoint", None, "Checkpoint; the experiment's newest if absent.")
    flags.DEFINE_string(
        "output", None, "Folder to write; <experiment>/export/model-<step> if absent."
    )
    flags.DEFINE_list("outputs", [], "Outputs to serve; embeddings, or else the last, if absent.")
    flags.DEFINE_bool("overwrite", False, "Replace an earlier export.")


def main(model, given, rest):
    if rest:
        raise UserError(f"Unexpected argument {rest[0]!r}: flags are --name=value.")
    options = flags.FLAGS
    folder, checkpoint = experiment.locate(model, given, options.checkpoint)
    output = options.output or os.path.join(folder, "export", os.path.basename(checkpoint))
    key = "actions.export.outputs"
    declared = model.config[key] if key in model.config else ()  # noqa: SIM401, it has no get
    note = export(
        model,
        checkpoint,
        output,
        outputs=options.outputs or declared,
        overwrite=options.overwrite,
        code=experiment.last_start(folder),
    )
    averages = " (moving averages)" * note["moving_averages"]
    print(f"Exported {checkpoint}{averages} to {output}")
    for kind in ("inputs", "outputs"):
        for name, tensor in note[kind].items():
            print(f"  {kind[:-1]} {name}: {tensor['dtype']} {tensor['shape']}")
    print(f"Load it with tf.saved_model.load({output!r}).signatures['serving_default'].")
    return 0


if __name__ == "__main__":
    define_flags()
    config_lib.run(main)
