"""Builds the index of a catalogue; it contains the model that embeds the queries.

    python -m retrieval.build --model=models.ranker --output=INDEX [--checkpoint=PREFIX]
        [--folder=IMAGES | --manifest=shop.csv] [--where=category=shoes] [--any.config.key=value]
    python -m retrieval.build --saved_model=DIR --folder=IMAGES --output=INDEX
        [--image_size=224] [--input_range=0,1]

This embeds the catalogue and builds the index, which `retrieval.search` searches by photos. The
catalogue is that of the model's data set, of all splits, or the images of a folder or a CSV: the
images with the role catalogue or, if there are none, all except the queries. --where chooses other
rows. After a kill, the same command resumes. Building again makes a new version of the index:
searches use the old one until the new one is complete.
"""

import functools
import os
import sys

from absl import flags

from retrieval.embeddings import source
from trainer import commandline, files, program
from trainer import config as trainer_config
from trainer.config import UserError

EMBEDDINGS = "embeddings"  # folder of the store within the index, while it is built


def main(options, model, given, rest):
    """The program; `model` is a module or None, `given` the keys that the command line set."""
    commandline.no_arguments(rest)
    if not options.output:
        raise UserError("--output=INDEX: name the folder of the index")
    checkpoint = source.locate(options, model, given)
    with trainer_config.user_errors(options.output):
        _build(options, model, checkpoint)
    return 0


def _build(options, model, checkpoint):
    from retrieval.catalogue import index, versions
    from retrieval.embeddings import store
    from retrieval.reports import answers

    rows = _rows(options, model)
    files.claim(options.output, versions.KIND)
    folder = os.path.join(options.output, EMBEDDINGS)
    with source.opened(options, model, checkpoint) as embedder:
        try:
            made = _embed(options, model, rows, folder, embedder)
        except store.OtherSource:  # of an interrupted run on other images
            store.discard(folder)
            made = _embed(options, model, rows, folder, embedder)
        source.print_skipped(made)
        manifest = index.build(
            folder,
            options.output,
            options.factory,
            similarity=options.similarity,
            memory=None if options.memory is None else options.memory * 2**30,
            recall=options.recall,
            save_model=embedder.save,
        )
    store.discard(folder)
    answers.print_built(options.output, manifest)
    print(f"search it: prototrain search photo.jpg --index={options.output}")


def _rows(options, model):
    """The ProductTable to embed; None for the test catalogue of a model without a table."""
    from retrieval.embeddings import images

    if options.folder or options.manifest:
        # Conditions choose among all rows, not only those of the catalogue.
        rows = images.table(options.folder, options.manifest, "", options.columns)
        catalogue = images.catalogue(rows, options.where)
    else:
        catalogue = source.catalogue_of(model, options.where)
        if catalogue is None:
            name = model.__name__
            print(f"{name} has no table(): the catalogue is its retrieval_index", file=sys.stderr)
            return None
    products = set(catalogue.products.tolist())
    each = ", one image each" if 1 < len(products) == len(catalogue) else ""
    print(f"catalogue: {len(catalogue):,} images of {len(products):,} products{each}")
    if len(products) == 1:
        print(
            f"warning: all images are of the product {min(products)!r}, so every photo will find "
            "it; a product is a folder, or a value of the column label of a CSV",
            file=sys.stderr,
        )
    return catalogue


def _embed(options, model, rows, folder, embedder):
    from retrieval.embeddings import passes

    if rows is None:
        return passes.embed_to_store(model, "retrieval_index", folder, embedder)
    how = {"on_bad_image": options.on_bad_image, "batch_size": options.batch_size}
    try:
        return passes.embed_table(rows, folder, embedder, **how)
    except ValueError as error:
        if str(error).startswith("cannot read the image"):
            raise ValueError(f"{error}; --on_bad_image=skip skips such images") from None
        raise


def define_flags(values):
    text, path, decimal, choice = commandline.definers(values, "string", "path", "float", "enum")
    path("output", None, "Folder of the index; an interrupted run resumes.")
    source.define_flags(values)
    text("factory", "auto", "FAISS factory, or auto: the most exact kind that fits into memory.")
    decimal(
        "recall", 0.95, "Fraction of the 10 nearest items that a search must find.", within="(0, 1]"
    )
    decimal("memory", None, "GiB that the index may take; default: half of the available memory.",
            within="(0, inf)")  # fmt: skip
    choice("similarity", "cosine", ["cosine", "dot", "euclidean"], "Similarity of two embeddings.")


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
