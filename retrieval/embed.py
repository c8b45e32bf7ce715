"""Embeddings of pictures, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=PREFIX | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

writes a store (see `retrieval.store`). After a kill the same line goes on at the last whole shard.
With --saved_model the pictures are the model's datasets still, and the embeddings those of the
SavedModel's signature, whatever made it.

    python -m retrieval.embed --saved_model=DIR --folder=PICTURES --output=DIR
        [--image_size=224] [--pixel_range=0,1] [--on_bad_image=skip]
    python -m retrieval.embed --saved_model=DIR --manifest=shop.csv [--where=role=query] ...

needs no model module: the pictures are those below a folder, or those of a CSV of
path,label[,category,...], resized to the size that the signature takes or that is given. Numbers
that a signature takes as floats are 0 to 255, or as --pixel_range says.
"""

import contextlib
import hashlib
import os
import re
import sys

import numpy as np
from absl import flags

from retrieval import files, listing, progress, store
from retrieval.store import Embedded
from trainer import config as trainer_config

# A picture counts as "raw pixels" at no more than this many pixels a side.
PIXEL_SIDE = 32


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of `model.datasets()` with the weights of a checkpoint.

    model: a model module. names: which of its datasets, such as 'retrieval_query'. checkpoint:
    prefix as `trainer.checkpoints.latest` returns it. threads: for TensorFlow, 0 for all cores.
    Returns {name: Embedded}. Raises ValueError where the model sets no embeddings, a dataset is
    missing, or the checkpoint does not fit the model.
    """
    with _session(
        lambda: _datasets(model, names), _of_model(model, checkpoint), threads=threads
    ) as passes:
        return {name: _joined(list(passes(name)), name) for name in names}


def embed_to_store(model, name, folder, *, checkpoint=None, saved_model=None, dtype="float32",
                   shard_rows=65536, threads=0):  # fmt: skip
    """Embeds one of `model.datasets()` into a store, going on where an interrupted run ended.

    With the weights of a checkpoint, or with a SavedModel. Returns the store's manifest.
    """
    source = {
        "model": model.__name__,
        "dataset": name,
        "checkpoint": checkpoint or saved_model,
        "checkpoint_sha256": fingerprint(checkpoint, saved_model),
        "config_sha256": hashlib.sha256(model.config.to_json().encode()).hexdigest(),
        "preprocessing": "as the model's datasets and build(train_phase=False)",
    }
    embed = _of_model(model, checkpoint) if checkpoint else _of_saved_model(saved_model)
    return _to_store(
        lambda: _datasets(model, [name]), embed, folder, source, dtype, shard_rows, threads
    )


def embed_pictures(columns, saved_model, folder, *, image_size=None, pixel_range=(0, 255),
                   on_bad_image="error", batch_size=64, dtype="float32", shard_rows=65536,
                   threads=0):  # fmt: skip
    """Embeds picture files into a store with a SavedModel; the store's manifest.

    columns: as `listing.of_folder` and `listing.of_manifest` return them. image_size: (height,
    width), what the signature takes if None. pixel_range: what black and white become where the
    signature takes floats. on_bad_image: 'error' or 'skip'; the manifest names those left out.
    """
    size, channels = _input_size(saved_model, image_size)
    low, high = pixel_range
    listed = "\n".join("\t".join(row) for row in zip(*columns.values(), strict=True))
    source = {
        "pictures_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "checkpoint": saved_model,
        "checkpoint_sha256": fingerprint(saved_model=saved_model),
        "preprocessing": f"{size[0]} x {size[1]} x {channels}, bilinear, {low:g} to {high:g}",
        "on_bad_image": on_bad_image,
    }
    left_out = []

    def datasets():
        nonlocal left_out
        made, left_out = listing.dataset(columns, size, channels, batch_size, on_bad_image)
        return {"pictures": made}

    embed = _of_saved_model(saved_model, pixel_range)
    return _to_store(
        datasets, embed, folder, source, dtype, shard_rows, threads, lambda: {"left_out": left_out}
    )


def _to_store(datasets, embed, folder, source, dtype, shard_rows, threads, notes=dict):
    """Embeds the one dataset of `datasets()`; `notes()` goes into the finished manifest."""
    with files.only_writer(folder):
        manifest = store.begin(folder, source, dtype)
        if manifest["complete"]:
            return manifest
        done = sum(shard["batches"] for shard in manifest["shards"])
        with _session(datasets, embed, threads=threads, skip=done, images=False) as passes:
            (name,) = passes.names
            waiting, rows = [], 0
            for part in passes(name):
                waiting.append(part)
                rows += len(part["id"])
                if rows >= shard_rows:
                    store.append(folder, manifest, _joined(waiting, name), len(waiting))
                    waiting, rows = [], 0
            if waiting:
                store.append(folder, manifest, _joined(waiting, name), len(waiting))
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


@contextlib.contextmanager
def _session(datasets, embed, *, threads=0, skip=0, images=True):
    """Yields a function that passes over a dataset by name, batch by batch, from `skip` on.

    datasets: function that makes {name: dataset}. embed: function (session, batch) -> embeddings.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        datasets, spec = _alike(datasets())
        if skip:
            datasets = {name: dataset.skip(skip) for name, dataset in datasets.items()}
        iterator = v1.data.Iterator.from_structure(
            {key: s.dtype for key, s in spec.items()}, {key: s.shape for key, s in spec.items()}
        )
        starts = {name: iterator.make_initializer(made) for name, made in datasets.items()}
        # A negative cardinality means unknown.
        counts = {n: tf.data.experimental.cardinality(made) for n, made in datasets.items()}
        batch = iterator.get_next()
        config = v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
        )
        with v1.Session(config=config) as session:
            fetches = {"embeddings": tf.cast(embed(session, batch), tf.float32)}
            columns = [key for key in ("id", "product", "category", "path") if key in batch]
            fetches |= {key: batch[key] for key in columns}
            if images:
                fetches["image"] = _reduced(tf, batch["image"])
            step = session.make_callable(fetches)
            counts = session.run(counts)

            def passes(name):
                session.run(starts[name])
                return progress.track(
                    _batches(step),
                    counts[name] if counts[name] > 0 else None,
                    f"embedding {name}",
                    size=lambda part: len(part["id"]),
                )

            passes.names = list(datasets)
            yield passes


def _of_model(model, checkpoint):
    """Embeds with `model.build` and the weights of a checkpoint."""

    def embed(session, batch):
        import tensorflow as tf

        from trainer import checkpoints

        embeddings = getattr(model.build(dict(batch), train_phase=False), "embeddings", None)
        if embeddings is None:
            raise ValueError(f"{model.__name__}.build sets no embeddings: nothing to retrieve with")
        variables = session.graph.get_collection(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES)
        checkpoints.restore(session, checkpoint, variables, averages=True)
        return embeddings

    return embed


def _of_saved_model(folder, pixel_range=(0, 255)):
    """Embeds with a SavedModel's `serving_default` signature.

    The TF1 loader reads SavedModels of both generations, and can feed them a tensor of this graph.
    """

    def embed(session, batch):
        import tensorflow as tf

        given, wanted = _signature(folder)
        image, (low, high) = batch["image"], pixel_range
        if tuple(pixel_range) != (0, 255):
            image = tf.cast(image, tf.float32) * ((high - low) / 255) + low
        image = tf.cast(image, tf.dtypes.as_dtype(given.dtype))
        loader = tf.compat.v1.saved_model
        loader.load(session, [tf.saved_model.SERVING], folder, input_map={given.name: image})
        return session.graph.get_tensor_by_name(wanted.name)

    return embed


def _signature(folder):
    """The one input and the embeddings of a SavedModel's signature, as TensorInfo."""
    import tensorflow as tf

    loader = tf.compat.v1.saved_model
    try:
        # The signature must be known before the graph is imported with its input replaced.
        with tf.Graph().as_default(), tf.compat.v1.Session() as other:
            meta = loader.load(other, [tf.saved_model.SERVING], folder)
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--saved_model={folder}: cannot be loaded: {reason}") from None
    if "serving_default" not in meta.signature_def:
        known = ", ".join(meta.signature_def) or "none"
        raise ValueError(f"--saved_model={folder}: has no signature serving_default, but {known}")
    signature = meta.signature_def["serving_default"]
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs) or "nothing"
        raise ValueError(f"--saved_model={folder}: takes {names}; one batch of pictures expected")
    outputs = signature.outputs
    if "embeddings" not in outputs and len(outputs) != 1:
        raise ValueError(f"--saved_model={folder}: gives {', '.join(outputs)} but no embeddings")
    (given,) = signature.inputs.values()
    return given, outputs["embeddings"] if "embeddings" in outputs else next(iter(outputs.values()))


def _input_size(folder, image_size=None):
    """((height, width), channels) of the pictures that a SavedModel takes."""
    shape = _signature(folder)[0].tensor_shape
    sides = [None if shape.unknown_rank else side.size for side in shape.dim]
    if not shape.unknown_rank and len(sides) != 4:
        raise ValueError(f"--saved_model={folder}: takes {sides}, not pictures [B, H, W, C]")
    height, width, channels = [n if n > 0 else None for n in sides[1:]] or (None,) * 3
    wanted = image_size or (height, width)
    if None in wanted:
        raise ValueError(f"--saved_model={folder}: takes any size; say which: --image_size=224")
    if (height or wanted[0], width or wanted[1]) != tuple(wanted):
        raise ValueError(
            f"--image_size={wanted[0]},{wanted[1]}: {folder} takes {height} x {width} only"
        )
    return tuple(wanted), channels or 3


def _batches(step):
    """What `step` yields until its dataset ends; a picture that cannot be read is a ValueError."""
    import tensorflow as tf

    while True:
        try:
            part = step()
        except tf.errors.OutOfRangeError:
            return
        except tf.errors.InvalidArgumentError as error:
            # The pipeline's own words stand in an assertion, within TensorFlow's about itself.
            said = re.search(r"assertion failed: \[(.*?)\](?= \[|\n|$)", error.message)
            if said is None:
                raise
            raise ValueError(said[1].replace("\\'", "'")) from None
        yield part


def _joined(parts, name):
    if not parts:
        raise ValueError(f"dataset {name!r} is empty: there is nothing to embed")
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Embedded(
        columns["embeddings"],
        _text(columns["id"]),
        _text(columns["product"]),
        _text(columns["category"]),
        columns.get("image"),
        _text(columns["path"]) if "path" in columns else None,
    )


def _text(values):
    return np.array([v.decode() for v in values], dtype=str)


def _reduced(tf, image):
    """The pictures, uint8, averaged down to at most 32 x 32."""
    side = tf.minimum(PIXEL_SIDE, tf.reduce_min(tf.shape(image)[1:3]))
    small = tf.image.resize(tf.cast(image, tf.float32), [side, side], method="area")
    return tf.cast(tf.round(small), tf.uint8)


def pictures_of(model, name, wanted) -> dict:
    """Returns {id: uint8 image [H, W, C]} for the wanted ids of one of the model's datasets."""
    import tensorflow as tf

    wanted, found = set(wanted), {}
    with tf.Graph().as_default():
        dataset = _datasets(model, [name])[name]
        batch = tf.compat.v1.data.make_one_shot_iterator(dataset).get_next()
        fetches = {"id": batch["id"], "image": batch["image"]}
        with tf.compat.v1.Session() as session:
            step = session.make_callable(fetches)
            for part in _batches(step):
                for key, image in zip(_text(part["id"]), part["image"], strict=True):
                    if key in wanted:
                        found[key] = image
                if len(found) == len(wanted):
                    break
    return found


def _datasets(model, names):
    datasets = model.datasets()
    missing = [name for name in names if name not in datasets]
    if missing:
        raise ValueError(f"{model.__name__}.datasets() returns no {missing[0]!r}")
    # Others may be of another kind: a head trains on features, and is evaluated on pictures.
    return {name: datasets[name] for name in names}


def _alike(datasets):
    """The datasets reduced to the keys and shapes that one iterator can serve, and their spec."""
    import tensorflow as tf

    specs = [dict(dataset.element_spec) for dataset in datasets.values()]
    keys = [key for key in specs[0] if all(key in spec for spec in specs)]
    common = {}
    for key in keys:
        shape = specs[0][key].shape
        for spec in specs[1:]:
            shape = shape.most_specific_compatible_shape(spec[key].shape)
        common[key] = tf.TensorSpec(shape, specs[0][key].dtype)
    reduced = {
        name: dataset.map(lambda batch: {key: batch[key] for key in keys})
        for name, dataset in datasets.items()
    }
    return reduced, common


def main(model, given, rest):
    """The program, with `model` (a module) and the config keys that the command line set."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    from trainer import experiment

    options = flags.FLAGS
    if not options.output:
        raise trainer_config.UserError("--output=DIR: name the folder of the store")
    checkpoint = None
    if options.saved_model:
        experiment.restore_config(model, given)
    else:
        _, checkpoint = experiment.locate(model, given, options.checkpoint)
    try:
        manifest = embed_to_store(
            model, options.dataset, options.output, checkpoint=checkpoint,
            saved_model=options.saved_model, dtype=options.dtype, shard_rows=options.shard_rows,
            threads=options.threads,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise trainer_config.UserError(str(error)) from error
    print(f"{options.output}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    return 0


def pictures():
    """The program without a model module: a SavedModel over picture files."""
    options = flags.FLAGS
    try:
        for name in ("output", "saved_model"):
            if not getattr(options, name):
                raise ValueError(f"--{name}=DIR: is needed to embed a folder or a manifest")
        if options.folder and options.manifest:
            raise ValueError("--folder and --manifest: give one of them")
        if options.folder:
            columns = listing.of_folder(options.folder)
        else:
            columns = listing.of_manifest(options.manifest, options.where)
        size = _numbers("image_size", options.image_size, int)
        manifest = embed_pictures(
            columns, options.saved_model, options.output,
            image_size=size and (size[0], size[-1]),
            pixel_range=_numbers("pixel_range", options.pixel_range, float),
            on_bad_image=options.on_bad_image, batch_size=options.batch_size,
            dtype=options.dtype, shard_rows=options.shard_rows, threads=options.threads,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise trainer_config.UserError(str(error)) from error
    print(f"{options.output}: {manifest['count']} x {manifest['dimensions']} {manifest['dtype']}")
    for path, reason in manifest["left_out"][:5]:
        print(f"left out: {path}: {reason}")
    if manifest["left_out"]:
        print(f"{len(manifest['left_out'])} pictures left out; manifest.json names them")


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
    text("dataset", "retrieval_index", "Which of the model's datasets.")
    text("folder", None, "Embed the pictures below this folder; needs no --model.")
    text("manifest", None, "Embed the pictures of this CSV of path,label[,category,...].")
    flags.DEFINE_list("where", [], "Rows of the manifest: column=value, all of which must hold.")
    flags.DEFINE_list("image_size", [], "Height,width or one side; the signature's if absent.")
    flags.DEFINE_list("pixel_range", ["0", "255"], "What black and white are to the SavedModel.")
    choice("on_bad_image", "error", ["error", "skip"], "What a picture that cannot be read does.")
    number("batch_size", 64, "Pictures at a time, of a folder or manifest.", lower_bound=1)
    text("output", None, "Folder of the store.")
    choice("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    number("shard_rows", 65536, "Rows a shard, about.", lower_bound=1)
    number("threads", 0, "TensorFlow's threads (0: all cores).", lower_bound=0)


def run(argv=None):
    """The program: `--folder` and `--manifest` embed files, anything else a model's datasets."""
    argv = sys.argv if argv is None else argv
    from trainer import quiet

    quiet.import_tensorflow()  # before a model module does, with its banner
    define_flags()
    if not any(a.lstrip("-").split("=")[0] in ("folder", "manifest") for a in argv[1:]):
        trainer_config.run(main, argv)
    trainer_config.run_without_model(pictures, argv)


if __name__ == "__main__":
    run()
