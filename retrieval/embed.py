"""Embeddings of images, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=PREFIX | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

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

import contextlib
import sys

from absl import flags

from retrieval.embeddings import images, store
from trainer import config as trainer_config


def main(model, given, rest):
    """The program, with `model` (a module) and the config keys that the command line set."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    from trainer import experiment

    options = flags.FLAGS
    if options.checkpoint and options.saved_model:
        raise trainer_config.UserError("--checkpoint and --saved_model: give one of them")
    checkpoint = None
    if options.saved_model:
        experiment.restore_config(model, given)
    else:
        _, checkpoint = experiment.locate(model, given, options.checkpoint)
    embed(model, checkpoint)
    return 0


def embed(model=None, checkpoint=None):
    """Embeds what the flags name, with the weights of a checkpoint or a SavedModel."""
    from retrieval.embeddings import embedder

    options = flags.FLAGS
    with _in_one_line(options.output):
        if not options.output:
            raise ValueError("--output=DIR: name the folder of the store")
        if not checkpoint and not options.saved_model:
            raise ValueError("--model=NAME or --saved_model=DIR: say what embeds the images")
        for name in ("image_size", "input_range"):
            if checkpoint and options[name].present:
                raise ValueError(f"--{name}: goes with --saved_model; a model's own is known")
        files = bool(options.folder or options.manifest)
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


@contextlib.contextmanager
def _in_one_line(output):
    """Turns what is wrong with the input or the disk into an error of one line."""
    try:
        yield
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    except OSError as error:
        place = error.filename or output
        raise trainer_config.UserError(f"{place}: {error.strerror or error}") from error


def _size(values):
    """(height, width) of --image_size, one or two numbers; None if it was not given."""
    try:
        sides = [int(value) for value in values]
    except ValueError:
        sides = [0]
    if values and (len(sides) > 2 or min(sides) < 1):
        raise ValueError(f"--image_size={','.join(values)}: takes one or two whole numbers")
    return (sides[0], sides[-1]) if values else None


def define_flags():
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("model", None, "Model module, such as models.simple.", short_name="m")
    text("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    text("saved_model", None, "Folder of a SavedModel to embed with instead.")
    text("dataset", "retrieval_index", "Which of the model's datasets, such as retrieval_query.")
    text("folder", "", "Embed the images below this folder, or this one image.")
    text("manifest", "", "Embed the images of this CSV of path,label[,category,...].")
    text("where", "", "Rows to embed: column=value|value,column=value; all conditions must hold.")
    text("columns", "", "Names of the manifest's columns, if others: path=file,label=sku.")
    flags.DEFINE_list("image_size", [], "Height,width or one side; the SavedModel's if absent.")
    text("input_range", "", "Pixels that a SavedModel of floats wants, if it does not say: "
         "0,1 or -1,1 or 0,255 or imagenet or caffe.")  # fmt: skip
    choice("on_bad_image", "error", ["error", "skip"], "How to handle unreadable images.")
    number("batch_size", 64, "Images per batch, of a folder or manifest.", lower_bound=1)
    text("output", None, "Folder of the store; an interrupted run resumes.")
    choice("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    number("shard_rows", 65536, "Rows per shard, about: what a kill can lose.", lower_bound=1)
    number("threads", 0, "TensorFlow's threads (0: all cores).", lower_bound=0)


def run(argv=None):
    """The program: a model's datasets or image files, the latter also without a model module."""
    argv = sys.argv if argv is None else argv
    try:
        from trainer import quiet

        quiet.import_tensorflow()  # before a model module imports it, with its banner
        define_flags()
        given = {argument.lstrip("-").split("=")[0] for argument in argv[1:]}
        if given & {"folder", "manifest"} and not given & {"model", "m", "flagfile"}:
            trainer_config.run_without_model(embed, argv)
        else:
            trainer_config.run(main, argv)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes after the last whole shard", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
