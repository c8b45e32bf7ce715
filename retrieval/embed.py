"""Embeddings of pictures, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=PREFIX | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

writes a store (see `retrieval.embeddings.store`). After a kill the same line goes on at the last whole shard.
With --saved_model the pictures are the model's datasets still, and the embeddings those of the
SavedModel's signature, whatever made it.

    python -m retrieval.embed --model=models.simple --folder=PICTURES --output=DIR
        [--on_bad_image=skip]
    python -m retrieval.embed --model=models.simple --manifest=shop.csv [--where=role=query] ...
    python -m retrieval.embed --saved_model=DIR --folder=PICTURES --output=DIR
        [--image_size=224] [--pixel_range=0,1]

embeds the pictures below a folder, one picture, or those of a CSV of path,label[,category,...],
resized to the size that the model takes. With --saved_model no model module is needed; where the
signature takes pictures of any size, --image_size says which, and numbers that it takes as floats
are 0 to 255, or as --pixel_range says.
"""

import contextlib
import sys

from absl import flags

from retrieval.embeddings import images
from retrieval.embeddings.embedder import embed_pictures, embed_to_store
from trainer import config as trainer_config


def main(model, given, rest):
    """The program, with `model` (a module) and the config keys that the command line set."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    from trainer import experiment

    options = flags.FLAGS
    if not options.output:
        raise trainer_config.UserError("--output=DIR: name the folder of the store")
    if options.checkpoint and options.saved_model:
        raise trainer_config.UserError("--checkpoint and --saved_model: give one of them")
    checkpoint = None
    if options.saved_model:
        experiment.restore_config(model, given)
    else:
        _, checkpoint = experiment.locate(model, given, options.checkpoint)
    if options.folder or options.manifest:
        return pictures(model, checkpoint)
    with _in_one_line(options.output):
        manifest = embed_to_store(
            model, options.dataset, options.output, checkpoint=checkpoint,
            saved_model=options.saved_model, dtype=options.dtype, shard_rows=options.shard_rows,
            threads=options.threads,
        )  # fmt: skip
    print(f"{options.output}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    return 0


def pictures(model=None, checkpoint=None):
    """The program over picture files: with the weights of a checkpoint, or with a SavedModel."""
    options = flags.FLAGS
    with _in_one_line(options.output):
        if not options.output:
            raise ValueError("--output=DIR: name the folder of the store")
        if not checkpoint and not options.saved_model:
            raise ValueError("--model=NAME or --saved_model=DIR: say what embeds the pictures")
        if options.folder and options.manifest:
            raise ValueError("--folder and --manifest: give one of them")
        for name in ("image_size", "pixel_range"):
            if checkpoint and options[name].present:
                raise ValueError(f"--{name}: goes with --saved_model; a model's own is known")
        if options.folder:
            columns = images.of_folder(options.folder)
        else:
            columns = images.of_manifest(options.manifest, options.where)
        size = _numbers("image_size", options.image_size, int)
        manifest = embed_pictures(
            columns, options.output, model=model, checkpoint=checkpoint,
            saved_model=options.saved_model,
            image_size=size and (size[0], size[-1]),
            pixel_range=_numbers("pixel_range", options.pixel_range, float),
            on_bad_image=options.on_bad_image, batch_size=options.batch_size,
            dtype=options.dtype, shard_rows=options.shard_rows, threads=options.threads,
        )  # fmt: skip
    print(f"{options.output}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    for path, reason in manifest["left_out"][:5]:
        print(f"left out: {path}: {reason}")
    if manifest["left_out"]:
        print(f"{len(manifest['left_out'])} pictures left out; manifest.json names them")
    return 0


@contextlib.contextmanager
def _in_one_line(output):
    """What is wrong with the input or the disk ends the program with a line instead of a trace."""
    try:
        yield
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    except OSError as error:
        place = error.filename or output
        raise trainer_config.UserError(f"{place}: {error.strerror or error}") from error


def _numbers(name, values, kind):
    try:
        numbers = tuple(kind(value) for value in values)
    except ValueError:
        raise ValueError(f"--{name}={','.join(values)}: takes one or two numbers") from None
    if len(numbers) > 2 or (name == "pixel_range" and len(numbers) != 2):
        raise ValueError(f"--{name}={','.join(values)}: takes two numbers")
    return numbers


def define_flags():
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("model", None, "Model module, such as models.simple.", short_name="m")
    text("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    text("saved_model", None, "Folder of a SavedModel to embed with instead.")
    text("dataset", "retrieval_index", "Which of the model's datasets, such as retrieval_query.")
    text("folder", None, "Embed the pictures below this folder, or this one picture.")
    text("manifest", None, "Embed the pictures of this CSV of path,label[,category,...].")
    flags.DEFINE_list("where", [], "Rows of the manifest: column=value, all of which must hold.")
    flags.DEFINE_list("image_size", [], "Height,width or one side; the signature's if absent.")
    flags.DEFINE_list(
        "pixel_range", ["0", "255"], "What 0 and 255 become where the SavedModel takes floats."
    )
    choice("on_bad_image", "error", ["error", "skip"], "What a picture that cannot be read does.")
    number("batch_size", 64, "Pictures at a time, of a folder or manifest.", lower_bound=1)
    text("output", None, "Folder of the store; one that was interrupted is gone on with.")
    choice("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    number("shard_rows", 65536, "Rows a shard, about: what a kill can lose.", lower_bound=1)
    number("threads", 0, "TensorFlow's threads (0: all cores).", lower_bound=0)


def run(argv=None):
    """The program: a model's datasets or picture files, these also without a model module."""
    argv = sys.argv if argv is None else argv
    try:
        from trainer import quiet

        quiet.import_tensorflow()  # before a model module does, with its banner
        define_flags()
        given = {argument.lstrip("-").split("=")[0] for argument in argv[1:]}
        if given & {"folder", "manifest"} and not given & {"model", "m", "flagfile"}:
            trainer_config.run_without_model(pictures, argv)
        else:
            trainer_config.run(main, argv)
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the last whole shard", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
