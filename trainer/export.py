"""`python -m trainer.export --model=models.simple`: a trained model as a SavedModel.

    python -m trainer.export --model=M [--checkpoint=best|last|PATH] [--output=DIR] [--outputs=a,b]

This exports the experiment's best checkpoint by default (the last, if it keeps none), with the
moving averages of the weights if the checkpoint has them. The configuration is the experiment's
config.json; flags override it. A model may declare `actions.export.outputs` to name its outputs.
"""

import functools
import os
import re
from collections.abc import Collection, Iterable
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from trainer import commandline, program, quiet

quiet.import_tensorflow()

import numpy as np  # noqa: E402 (after the quiet import)
import tensorflow as tf  # noqa: E402

from trainer import checkpoints, experiment, files, layers, low_rank, towers  # noqa: E402
from trainer.config import UserError, did_you_mean  # noqa: E402
from trainer.files import sync  # noqa: E402

v1 = tf.compat.v1

NOTE = os.path.join("assets.extra", "prototrain.json")  # SavedModel's folder for such files
TEXT = "text"  # folder of the text tower within a SavedModel of images
_WRITTEN = (
    r"(text/)?(saved_model\.pb(\.tmp.*)?|fingerprint\.pb|(variables|assets|assets\.extra)/.*)"
)


def export(
    model: ModuleType,
    checkpoint: str,
    output: str | os.PathLike,
    *,
    outputs: Collection[str] = (),
    overwrite: bool = False,
    code: Any = None,
) -> dict[str, Any]:
    """Writes a SavedModel with one signature, `serving_default`.

    Its inputs are the placeholders that `model.build(None, False)` makes and the outputs depend on,
    with their names; their first dimension, the batch, must be None. If `embeddings` are exported
    and the model has a text tower (`text_tower`), that is exported too, to the folder `text`.

    Args:
      model: a model module with the configuration of its training.
      checkpoint: prefix of the checkpoint; moving averages are used if it has them.
      output: folder to create.
      outputs: names of the outputs; default: `embeddings` if the model sets them, otherwise the
        last output that has a batch dimension and depends on a variable.
      overwrite: replace an earlier export.
      code: provenance of the training for the note, a JSON value.

    Returns:
      The note in assets.extra/prototrain.json of the SavedModel, a dict.

    Raises:
      UserError: the model cannot be served, or the folder contains something else.
    """
    output = os.path.abspath(os.path.expanduser(output))
    temporary = os.path.join(os.path.dirname(output), f".{os.path.basename(output)}.writing")
    _check_place(output, overwrite)
    with tf.Graph().as_default(), v1.Session() as session:
        with low_rank.merging() as updates:  # low-rank updates: the export has plain kernels
            built = build(model)
        chosen = choose(model, built, outputs)
        inputs = {p.op.name: p for p in placeholders(chosen.values())}
        _check_batch(model, inputs, chosen)
        checkpoints.restore(session, checkpoint, v1.global_variables(), averages=True)
        for update in {u.kernel.op.name: u for u in updates}.values():
            a, b = checkpoints.values(checkpoint, (update.a, update.b), averages=True)
            plain = session.run(update.kernel)
            update.kernel.load(plain + update.scale * np.matmul(a, b), session)
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
            "resizing": resizing(model),
            "config": model.config.to_dict(),
            "code": code,
        }
        tower = None
        if "embeddings" in chosen:
            tower, note["no_texts"] = text_tower(model)
        try:
            os.makedirs(os.path.dirname(output), exist_ok=True)
            _heal(temporary, output)
            files.claim(temporary, "unfinished export")
            try:
                write(session, os.path.join(temporary, "model"), inputs, chosen, note)
                if tower is not None:
                    tower.save(os.path.join(temporary, "model", TEXT))
                _publish(temporary, output)
            finally:
                _heal(temporary, output)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UserError(f"Cannot write {output}: {str(error).splitlines()[0]}.") from None
    return note


def _check_place(output, overwrite):
    """Raises `UserError` unless a folder may be written: new, or an export to be replaced."""
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise UserError(
            f"{output} exists: replace it with --overwrite, or choose another --output."
        )
    if not os.path.exists(os.path.join(output, NOTE)) or os.path.islink(output):
        raise UserError(f"--overwrite: {output} is not an export; it was not changed.")
    found = (
        os.path.relpath(os.path.join(at, n), output) for at, _, ns in os.walk(output) for n in ns
    )
    foreign = [name for name in found if name != files.MARK and not re.fullmatch(_WRITTEN, name)]
    if foreign:
        raise UserError(f"--overwrite: {output} also contains {foreign[0]!r}; move it away first.")


def build(model: ModuleType) -> layers.ModelDict:
    """Builds `model.build(None, False)` into the default graph; returns its ModelDict."""
    try:
        return layers.ModelDict(model.build(None, False))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{model.__name__}.build(inputs=None) fails ({type(error).__name__}: {error}): without "
            "inputs it must make placeholders, as models.simple does."
        ) from error


def resizing(model: ModuleType) -> dict[str, Any]:
    """How a model's images are resized, fields of its `resizing()`; {} for the default."""
    how = model.resizing() if callable(getattr(model, "resizing", None)) else None
    return {} if how is None or how.window is None else how._asdict()


def text_tower(model: Any) -> tuple[Any, str]:
    """(object that writes the model's text tower by `save(folder)`, or None; why there is none).

    Args:
      model: may have a function `texts()` that returns it, or None. If texts cannot be compared
        with the model's embeddings, that function raises a UserError with the reason.
    """
    texts = getattr(model, "texts", None)
    try:
        return (texts() if callable(texts) else None), ""  # it may also be a module
    except UserError as error:
        return None, str(error)


def choose(model: ModuleType, built: layers.ModelDict, names: Collection[str] = ()) -> dict:
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


def _has_weights(tensor):
    return any(op.type == "VarHandleOp" for op in towers.ancestors([tensor]))


def placeholders(tensors: Iterable[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the placeholders that tensors depend on, by name."""
    ops = (op for op in towers.ancestors(tensors) if op.type == "Placeholder")
    return [op.outputs[0] for op in sorted(ops, key=lambda op: op.name)]


def _check_batch(model, inputs, outputs):
    if not inputs:
        raise UserError(
            f"{model.__name__}: {', '.join(outputs)} depend on no placeholder, so there is nothing "
            "to feed."
        )
    for name, tensor in {**inputs, **outputs}.items():
        if tensor.shape.rank is not None and (
            tensor.shape.rank == 0 or tensor.shape[0] is not None
        ):
            raise UserError(
                f"{model.__name__}: {name!r} has shape {_describe(tensor)['shape']}; its first "
                "dimension, the batch, must be None to be served."
            )


def _describe(tensor):
    shape = None if tensor.shape.rank is None else tensor.shape.as_list()
    return {"dtype": tensor.dtype.name, "shape": shape}


def write(session: Any, folder: str, inputs: dict, outputs: dict, note: dict) -> None:
    """Writes the default graph as a SavedModel with the note, and syncs all files to disk.

    Args:
      session: a `tf.compat.v1.Session` with the values of the variables.
      folder: a folder that does not exist yet.
      inputs, outputs: {name: tensor} of the signature `serving_default`.
      note: content of `NOTE`, a JSON object.
    """
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
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    note["sha256"] = {os.path.relpath(path, folder): files.sha256(path) for path in sorted(paths)}
    path = os.path.join(folder, NOTE)
    os.makedirs(os.path.dirname(path))
    files.write_sealed(path, note)
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(parent, name))


def _publish(temporary, output):
    """Gives the complete export its name; readers see a complete old or new export."""
    made = os.path.join(temporary, "model")
    files.claim(made, "export", earlier=lambda folder: True)
    if os.path.exists(output):
        files.exchange(made, output)
    else:
        os.rename(made, output)


def _heal(temporary, output):
    """Removes temporary files of this or an interrupted export."""
    if not os.path.isdir(temporary):
        return
    aside = os.path.join(temporary, "model.old")  # where `files.exchange` may keep the old one
    if os.path.isdir(aside) and not os.path.exists(output):
        os.rename(aside, output)
    files.claim(temporary, "unfinished export")
    written = rf"model(\.old)?/({_WRITTEN}|\.prototrain)|(.*/)?\.[^/]*\.tmp"
    files.discard(temporary, "unfinished export", written)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    text, path, many, flag = commandline.definers(values, "string", "path", "list", "bool")
    text("model", None, "Model to export: a module name.", short_name="m")
    path("checkpoint", None, "best, last, or a path; default: the best on validation if the run "
         "keeps it, otherwise the last.")  # fmt: skip
    path("output", None, "Folder to write; default: <experiment>/export/model-<step>.")
    many("outputs", [], "Outputs to serve; default: embeddings, otherwise the last.")
    flag("overwrite", False, "Replace an earlier export.")


def main(options: flags.FlagValues, model: ModuleType, given: set[str], rest: list[str]) -> int:
    """The program, for `trainer.program.run`."""
    commandline.no_arguments(rest)
    folder, checkpoint = experiment.locate(model, given, options.checkpoint)
    print(experiment.describe(checkpoint), flush=True)
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
    if os.path.isdir(os.path.join(output, TEXT)):
        print(f"  texts: the text tower is in {TEXT}/, see docs/retrieval.md")
    print(f"Load it with tf.saved_model.load({output!r}).signatures['serving_default'].")
    return 0


def run(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run(
        functools.partial(main, options), argv, "stopped: nothing was written", flag_values=options
    )


if __name__ == "__main__":
    run()
