"""Embeddings of images, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=best|last|PATH | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

writes a store (see `retrieval.embeddings.store`). After a kill the same command resumes after the
last complete shard. With --saved_model the images are still those of the model's dataset, and the
SavedModel embeds them.

    python -m retrieval.embed --model=models.simple --folder=IMAGES --output=DIR
        [--on_bad_image=skip]
    python -m retrieval.embed --model=models.simple --manifest=shop.csv [--where=role=query] ...
    python -m retrieval.embed --saved_model=DIR --folder=IMAGES --output=DIR
        [--image_size=224] [--input_range=0,1]

embeds the images below a folder, one image, or those of a CSV of path,label[,category,...], as the
model's own datasets read them: resized to the model's size and cropped to their boxes. With
--saved_model no model module is needed. If it takes images of any size, --image_size says which; if
it takes floats and does not say which range of pixels it wants, --input_range does.
"""

import functools
import sys

from absl import flags

from retrieval.embeddings import store
from trainer import config as trainer_config
from trainer import quiet
from trainer.config import UserError

RENAMED = {"pixel_range": "--input_range: 0,1 or -1,1 or 0,255 or imagenet or caffe"}


def main(options, model, given, rest):
    """The program; `model` is a module or None, `given` the keys that the command line set."""
    trainer_config.no_arguments(rest)
    if options.checkpoint and options.saved_model:
        raise UserError("--checkpoint and --saved_model: give one of them")
    if not options.output:
        raise UserError("--output=DIR: name the folder of the store")
    files = bool(options.folder or options.manifest)
    if model is None and not (options.saved_model and files):
        raise UserError(
            "Give what embeds the images: --model=NAME, or --saved_model=DIR with --folder or "
            "--manifest."
        )
    quiet.import_tensorflow()
    from trainer import experiment

    checkpoint = None
    if not options.saved_model:
        _, checkpoint = experiment.locate(model, given, options.checkpoint)
        print(experiment.describe(checkpoint), flush=True)
    elif model is not None:
        experiment.restore_config(model, given)
    with trainer_config.user_errors(options.output):
        _embed(options, model, checkpoint, files)
    return 0


def _embed(options, model, checkpoint, files):
    """Embeds image files or a dataset, with the weights of a checkpoint or a SavedModel."""
    from retrieval.embeddings import embedder, images

    for name in ("image_size", "input_range"):
        if checkpoint and options[name].present:
            raise ValueError(f"--{name}: goes with --saved_model; a model's own is known")
    if files:
        rows = images.table(options.folder, options.manifest, options.where, options.columns)
    if checkpoint:
        spec = None if files else images.spec_of(model, [options.dataset])
        made = embedder.Embedder.of_experiment(
            model, checkpoint, spec=spec, threads=options.threads
        )
    else:
        made = embedder.Embedder.of_saved_model(
            options.saved_model,
            image_size=_size(options.image_size),
            input_range=options.input_range,
            threads=options.threads,
        )
    finished = store.is_complete(options.output)
    written = {"dtype": options.dtype, "shard_rows": options.shard_rows}
    with made:
        if files:
            manifest = embedder.embed_table(
                rows,
                options.output,
                made,
                on_bad_image=options.on_bad_image,
                batch_size=options.batch_size,
                **written,
            )
        else:
            manifest = embedder.embed_to_store(
                model, options.dataset, options.output, made, **written
            )
    if finished:
        note = "complete since an earlier run; delete the folder if its images changed"
        print(f"{options.output}: {note}", file=sys.stderr)
    print(f"{options.output}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    skipped = [line for shard in manifest["shards"] for line in shard.get("skipped", ())]
    for line in skipped[:5]:
        print(f"skipped: {line}")
    if skipped:
        print(f"{len(skipped)} images skipped; manifest.json names them")


def _size(values):
    """(height, width) of --image_size, one or two numbers; None if it was not given."""
    try:
        sides = [int(value) for value in values]
    except ValueError:
        sides = [0]
    if values and (len(sides) > 2 or min(sides) < 1):
        raise ValueError(f"--image_size={','.join(values)}: takes one or two whole numbers")
    return (sides[0], sides[-1]) if values else None


def define_flags(values):
    text, path, number, many, choice = trainer_config.definers(
        values, "string", "path", "integer", "list", "enum"
    )
    text("model", None, "Model module, such as models.simple.", short_name="m")
    path("output", None, "Folder of the store; an interrupted run resumes.")
    text("dataset", "retrieval_index", "Which of the model's datasets, such as retrieval_query.")
    path("folder", "", "Embed the images below this folder, or this one image.")
    path("manifest", "", "Embed the images of this CSV of path,label[,category,...].")
    text("where", "", "Rows to embed: column=value|value,column=value; all conditions must hold.")
    text("columns", "", "Names of the manifest's columns, if others: path=file,label=sku.")
    path("checkpoint", None, "best, last, or a path; the best on validation if the experiment "
         "keeps it, else the last.")  # fmt: skip
    path("saved_model", None, "Folder of a SavedModel to embed with instead.")
    many("image_size", [], "Height,width or one side; the SavedModel's if absent.")
    text("input_range", "", "Pixels that a SavedModel of floats wants, if it does not say: "
         "0,1 or -1,1 or 0,255 or imagenet or caffe.")  # fmt: skip
    choice("on_bad_image", "error", ["error", "skip"], "How to handle unreadable images.")
    number("batch_size", 64, "Images per batch, of a folder or manifest.", lower_bound=1)
    choice("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    number("shard_rows", 65536, "Rows per shard, about: what a kill can lose.", lower_bound=1)
    number("threads", 0, "TensorFlow's threads (0: all cores).", lower_bound=0)


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    trainer_config.run(
        functools.partial(main, options),
        argv,
        "Interrupted: the same command resumes after the last whole shard.",
        flag_values=options,
        model_needed=False,
        renamed=RENAMED,
    )


if __name__ == "__main__":
    run()
