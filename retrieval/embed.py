"""Embeddings of images, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=best|last|PATH | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

This writes a store (see `retrieval.embeddings.store`). `retrieval_index` is the test catalogue;
--all embeds the catalogue of all splits. After a kill, the same command resumes after the last
complete shard. With --saved_model, the SavedModel embeds the images of the model's dataset.

    python -m retrieval.embed --model=models.simple --folder=IMAGES --output=DIR
        [--on_bad_image=skip]
    python -m retrieval.embed --model=models.simple --manifest=shop.csv [--where=role=query] ...
    python -m retrieval.embed --saved_model=DIR --folder=IMAGES --output=DIR
        [--image_size=224] [--input_range=0,1]

These embed one image, the images of a folder, or the images of a CSV of path,label[,category,...].
Images are read as in the model's datasets: cropped to their boxes and resized to the model's size.
With --saved_model no model module is needed. If the SavedModel takes images of any size, give
--image_size. If it takes floats and does not state its pixel range, give --input_range.

    python -m retrieval.embed --model=models.simple --folder=IMAGES --output=STORE --shard=0/8
    python -m retrieval.embed --output=STORE --finish

These embed the first of eight shards of the images, or of the batches of the model's --dataset, and
complete the store. Any scheduler can start the eight processes, on any number of machines that see
STORE, which may be a URL such as s3://bucket/store. --finish verifies the shards. With
--engine=ray --workers=8, Ray runs all shards and completes the store.
"""

import functools
import re
import sys

from absl import flags

from retrieval.embeddings import parts, source
from trainer import commandline, program
from trainer import config as trainer_config
from trainer.config import UserError


def main(options, model, given, rest):
    """The program; `model` is a module or None, `given` the keys that the command line set."""
    commandline.no_arguments(rest)
    if not options.output:
        raise UserError("--output=DIR: name the folder of the store")
    shard = _shard(options)
    if options.finish:
        with trainer_config.user_errors(options.output):
            _print_made(options.output, parts.finish(options.output))
        return 0
    checkpoint = source.locate(options, model, given)
    if options.all and (options.folder or options.manifest or options["dataset"].present):
        raise UserError("--all embeds the whole catalogue of --model's data set: give it alone")
    with trainer_config.user_errors(options.output):
        if shard or options.engine == "ray":
            _embed_parts(options, model, checkpoint, shard)
        else:
            _embed(options, model, checkpoint)
    return 0


def _shard(options):
    """(i, n) of --shard=i/n, None without it. UserError for other values and clashing flags."""
    given = [f"--{name}" for name in ("shard", "finish") if options[name].present]
    given += ["--engine=ray"] * (options.engine == "ray")
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give one of them")
    if options["workers"].present and options.engine != "ray":
        raise UserError("--workers: goes with --engine=ray")
    if not options["shard"].present:
        return None
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", options.shard, re.ASCII)
    shard, of = map(int, found.groups()) if found else (0, 0)
    if shard >= of:
        raise UserError(f"--shard={options.shard}: takes i/n with i from 0 to n - 1, such as 0/8")
    return shard, of


def _embed_parts(options, model, checkpoint, shard):
    """Embeds one of several shards, or all of them on Ray."""
    from retrieval.embeddings import engine, store

    folder = options.output
    if shard is None:
        if not store.is_complete(folder):
            values = {name: options[name].value for name in options}
            engine.embed(values, model, checkpoint, options.workers or 2)
        return _print_made(folder, parts.finish(folder))
    with engine.Work(options, model, checkpoint) as work:
        count = work.shard(*shard)
    state = "complete" if store.is_complete(folder) else f"shard {shard[0]}/{shard[1]} is committed"
    print(f"{folder}: {state}, {count} embeddings by this process")


def _print_made(folder, manifest):
    print(f"{folder}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    source.print_skipped(manifest)


def _embed(options, model, checkpoint):
    """Embeds image files or a dataset, with the weights of a checkpoint or a SavedModel."""
    from retrieval.embeddings import engine, store

    finished = store.is_complete(options.output)
    with engine.Work(options, model, checkpoint) as work:
        manifest = work.whole()
    if finished:
        note = "complete since an earlier run; delete the folder if its images changed"
        print(f"{options.output}: {note}", file=sys.stderr)
    _print_made(options.output, manifest)
    if work.rows is None:
        _say_what(options, model)


def _say_what(options, model):
    """Prints which part of the catalogue a dataset is."""
    from retrieval.embeddings import store

    whole = source.catalogue_of(model)
    if whole is not None and options.dataset == "retrieval_index":
        products = len(set(store.read(options.output, verify=False).products.tolist()))
        among = len(set(whole.products.tolist()))
        if products < among:
            print(f"{products} of {among} products: the test catalogue; --all for all")


def define_flags(values):
    path, text, number, choice, flag = commandline.definers(
        values, "path", "string", "integer", "enum", "bool"
    )
    source.define_flags(values)
    path("output", None, "Folder of the store; an interrupted run resumes.")
    text("dataset", "retrieval_index", "Which of the model's datasets, such as retrieval_query.")
    flag("all", False, "Embed the catalogue of all splits, not only of the test split.")
    choice("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    number(
        "shard_rows", 65536, "Rows per file, about; a kill loses at most one file.", lower_bound=1
    )
    text("shard", None, "i/n: embed shard i of n, counted from 0; n processes fill one store.")
    flag("finish", False, "Verify the shards of --output, and complete the store.")
    choice("engine", "local", ["local", "ray"], "ray: embed all shards on a Ray cluster.")
    number("workers", 0, "Processes of --engine=ray (0: two).", lower_bound=0)


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run(
        functools.partial(main, options),
        argv,
        "Interrupted: the same command resumes after the last complete shard.",
        flag_values=options,
        model_needed=False,
        renamed=source.RENAMED,
    )


if __name__ == "__main__":
    run()
