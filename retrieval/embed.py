"""Embeddings of images, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=best|last|PATH | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

writes a store (see `retrieval.embeddings.store`). `retrieval_index` is the test catalogue; --all
embeds the catalogue of all splits. After a kill the same command resumes after the
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

from retrieval.embeddings import source
from trainer import config as trainer_config
from trainer.config import UserError


def main(options, model, given, rest):
    """The program; `model` is a module or None, `given` the keys that the command line set."""
    trainer_config.no_arguments(rest)
    if not options.output:
        raise UserError("--output=DIR: name the folder of the store")
    checkpoint = source.locate(options, model, given)
    if options.all and (options.folder or options.manifest or options["dataset"].present):
        raise UserError("--all: is the whole catalogue of --model's own data set; give it alone")
    with trainer_config.user_errors(options.output):
        _embed(options, model, checkpoint)
    return 0


def _embed(options, model, checkpoint):
    """Embeds image files or a dataset, with the weights of a checkpoint or a SavedModel."""
    from retrieval.embeddings import images, passes, store

    rows, spec = None, None
    if options.folder or options.manifest:
        rows = images.table(options.folder, options.manifest, options.where, options.columns)
    elif options.all:
        rows = source.catalogue_of(model, options.where)
        if rows is None:
            raise ValueError(f"--all: {model.__name__} has no table() of its whole data set")
    elif checkpoint:
        spec = images.spec_of(model, [options.dataset])
    finished = store.is_complete(options.output)
    written = {"dtype": options.dtype, "shard_rows": options.shard_rows}
    with source.opened(options, model, checkpoint, spec) as embedder:
        if rows is None:
            manifest = passes.embed_to_store(
                model, options.dataset, options.output, embedder, **written
            )
        else:
            how = {"on_bad_image": options.on_bad_image, "batch_size": options.batch_size}
            manifest = passes.embed_table(rows, options.output, embedder, **how, **written)
    if finished:
        note = "complete since an earlier run; delete the folder if its images changed"
        print(f"{options.output}: {note}", file=sys.stderr)
    print(f"{options.output}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    if rows is None:
        _say_what(options, model)
    source.print_skipped(manifest)


def _say_what(options, model):
    """Says which share of the catalogue a dataset is."""
    from retrieval.embeddings import store

    whole = source.catalogue_of(model)
    if whole is not None and options.dataset == "retrieval_index":
        products = len(set(store.read(options.output, verify=False).products.tolist()))
        among = len(set(whole.products.tolist()))
        if products < among:
            print(f"{products} of {among} products: the test catalogue; --all for all")


def define_flags(values):
    path, text, number, choice, flag = trainer_config.definers(
        values, "path", "string", "integer", "enum", "bool"
    )
    source.define_flags(values)
    path("output", None, "Folder of the store; an interrupted run resumes.")
    text("dataset", "retrieval_index", "Which of the model's datasets, such as retrieval_query.")
    flag("all", False, "Embed the catalogue of all splits, not of the test alone.")
    choice("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    number("shard_rows", 65536, "Rows per shard, about: what a kill can lose.", lower_bound=1)


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
        renamed=source.RENAMED,
    )


if __name__ == "__main__":
    run()
