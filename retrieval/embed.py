"""Embeddings of pictures, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=PREFIX | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

writes a store (see `retrieval.store`). After a kill the same line goes on at the last whole shard.
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
import glob
import hashlib
import os
import sys

from absl import flags

from retrieval import files, listing, passes, signature, store
from trainer import config as trainer_config


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of `model.datasets()` with the weights of a checkpoint.

    model: a model module. names: which of its datasets, such as 'retrieval_query'. checkpoint:
    prefix as `trainer.checkpoints.latest` returns it. threads: for TensorFlow, 0 for all cores.
    Returns {name: Embedded}. Raises ValueError where the model sets no embeddings, a dataset is
    missing, or the checkpoint does not fit the model.
    """
    embed = passes.of_model(model, checkpoint)
    with passes.opened(lambda: passes.datasets_of(model, names), embed, threads=threads) as batches:
        return {name: passes.joined(list(batches(name)), name) for name in names}


def embed_to_store(model, name, folder, *, checkpoint=None, saved_model=None, dtype="float32",
                   shard_rows=65536, threads=0):  # fmt: skip
    """Embeds one of `model.datasets()` into a store, going on where an interrupted run ended.

    With the weights of a checkpoint, or with a SavedModel. The store's manifest.
    """
    source = {
        "model": model.__name__,
        "dataset": name,
        "checkpoint": checkpoint or saved_model,
        "checkpoint_sha256": fingerprint(checkpoint, saved_model),
        "config_sha256": _config_sha256(model),
        "preprocessing": "as the model's datasets and build(train_phase=False)",
    }

    def datasets(done):
        return {name: passes.datasets_of(model, [name])[name].skip(done)}

    embed = passes.of_model(model, checkpoint) if checkpoint else signature.embedder(saved_model)
    return _to_store(datasets, embed, folder, source, dtype, shard_rows, threads)


def embed_pictures(columns, folder, *, model=None, checkpoint=None, saved_model=None,
                   image_size=None, pixel_range=(0, 255), on_bad_image="error", batch_size=64,
                   dtype="float32", shard_rows=65536, threads=0):  # fmt: skip
    """Embeds picture files into a store, with a model's checkpoint or a SavedModel; its manifest.

    columns: as `listing.of_folder` and `listing.of_manifest` return them. on_bad_image: 'error' or
    'skip'; the manifest names those left out. Of a SavedModel, image_size: (height, width), what
    the signature takes if None; pixel_range: what black and white become where it takes floats.
    """
    if checkpoint:
        size, channels = passes.input_size(model)
        embed = passes.of_model(model, checkpoint)
    else:
        size, channels = signature.input_size(saved_model, image_size)
        embed = signature.embedder(saved_model, pixel_range)
    low, high = pixel_range
    stamps = map(_stamp, columns["path"])
    listed = "\n".join("\t".join(row) for row in zip(*columns.values(), stamps, strict=True))
    source = {
        "pictures_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "checkpoint": checkpoint or saved_model,
        "checkpoint_sha256": fingerprint(checkpoint, saved_model),
        "preprocessing": f"{size[0]} x {size[1]} x {channels}, bilinear, {low:g} to {high:g}",
        "on_bad_image": on_bad_image,
        "batch_size": batch_size,  # shards end where batches do
    }
    if checkpoint:
        source["model"] = model.__name__
        source["config_sha256"] = _config_sha256(model)
    left_out = []

    def datasets(done):
        nonlocal left_out
        rows, batches = columns, done
        if on_bad_image == "error":  # every batch so far was whole: its pictures need no reading
            rows = {key: values[done * batch_size :] for key, values in columns.items()}
            batches = 0
        made, left_out = listing.dataset(rows, size, channels, batch_size, on_bad_image)
        return {"pictures": made.skip(batches)}

    return _to_store(
        datasets,
        embed,
        folder,
        source,
        dtype,
        shard_rows,
        threads,
        lambda: {"left_out": sorted(left_out)},
    )


def _stamp(path):
    """Size and time of a file, which tell that it is another one; '' where there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def _to_store(datasets, embed, folder, source, dtype, shard_rows, threads, notes=dict):
    """Embeds the one dataset of `datasets(done)`, which lacks the batches done before.

    `notes()` goes into the finished manifest.
    """
    with files.only_writer(folder):
        manifest = store.begin(folder, source, dtype)
        if manifest["complete"]:
            said = f"{folder}: complete since an earlier run; delete it if its pictures changed"
            print(said, file=sys.stderr)
            return manifest
        for left in glob.glob(os.path.join(glob.escape(str(folder)), ".*.tmp")):
            os.remove(left)  # of a writer that was killed
        done = sum(shard["batches"] for shard in manifest["shards"])
        if done:
            print(f"{folder}: going on after {manifest['count']} embeddings", file=sys.stderr)
        with passes.opened(lambda: datasets(done), embed, threads=threads, images=False) as batches:
            (name,) = batches.names
            waiting, rows = [], 0
            for part in batches(name):
                waiting.append(part)
                rows += len(part["id"])
                if rows >= shard_rows:
                    store.append(folder, manifest, passes.joined(waiting, name), len(waiting))
                    waiting, rows = [], 0
            if waiting:
                store.append(folder, manifest, passes.joined(waiting, name), len(waiting))
        if not manifest["shards"]:
            raise ValueError(f"dataset {name!r} is empty: there is nothing to embed")
        manifest |= notes()
        store.finish(folder, manifest)
    return manifest


def fingerprint(checkpoint=None, saved_model=None) -> str:
    """Hash of the files that hold the weights: what makes two embeddings comparable."""
    if checkpoint:
        folder, start = os.path.dirname(checkpoint), os.path.basename(checkpoint) + "."
        paths = [os.path.join(folder, n) for n in os.listdir(folder) if n.startswith(start)]
        paths = [path for path in paths if not path.endswith(".meta")]
    else:
        paths = [os.path.join(at, n) for at, _, names in os.walk(saved_model) for n in names]
    sums = [f"{os.path.basename(path)} {files.sha256(path)}" for path in sorted(paths)]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _config_sha256(model):
    return hashlib.sha256(model.config.to_json().encode()).hexdigest()


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
            columns = listing.of_folder(options.folder)
        else:
            columns = listing.of_manifest(options.manifest, options.where)
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
