"""Embeddings of a model's datasets, from a checkpoint or a SavedModel.

    python -m retrieval.embed --model=models.simple --dataset=retrieval_index --output=DIR
        [--checkpoint=PREFIX | --saved_model=DIR] [--dtype=float16] [--any.config.key=value]

writes a store (see `retrieval.store`). After a kill the same line goes on at the last whole shard.
With --saved_model the pictures are the model's datasets still, and the embeddings those of the
SavedModel's signature, whatever made it.
"""

import contextlib
import hashlib
import os
import re

import numpy as np
from absl import flags

from retrieval import files, progress, store
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
    with _session(model, names, checkpoint=checkpoint, threads=threads) as passes:
        return {name: _joined(list(passes(name)), name) for name in names}


def embed_to_store(model, name, folder, *, checkpoint=None, saved_model=None, dtype="float32",
                   shard_rows=65536, threads=0):  # fmt: skip
    """Embeds one dataset into a store, going on where an interrupted run ended; its manifest."""
    source = {
        "model": model.__name__,
        "dataset": name,
        "checkpoint": checkpoint or saved_model,
        "checkpoint_sha256": fingerprint(checkpoint, saved_model),
        "config_sha256": hashlib.sha256(model.config.to_json().encode()).hexdigest(),
        "preprocessing": "as the model's datasets and build(train_phase=False)",
    }
    with files.only_writer(folder):
        manifest = store.begin(folder, source, dtype)
        if manifest["complete"]:
            return manifest
        done = sum(shard["batches"] for shard in manifest["shards"])
        with _session(
            model, [name], checkpoint=checkpoint, saved_model=saved_model, threads=threads,
            skip=done, images=False,
        ) as passes:  # fmt: skip
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
def _session(model, names, *, checkpoint=None, saved_model=None, threads=0, skip=0, images=True):
    """Yields a function that passes over a dataset by name, batch by batch, from `skip` on."""
    import tensorflow as tf

    from trainer import checkpoints

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        datasets, spec = _alike(_datasets(model, names))
        if skip:
            datasets = {name: dataset.skip(skip) for name, dataset in datasets.items()}
        iterator = v1.data.Iterator.from_structure(
            {key: s.dtype for key, s in spec.items()}, {key: s.shape for key, s in spec.items()}
        )
        starts = {name: iterator.make_initializer(datasets[name]) for name in names}
        # A negative cardinality means unknown.
        counts = {name: tf.data.experimental.cardinality(datasets[name]) for name in names}
        batch = iterator.get_next()
        config = v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
        )
        with v1.Session(config=config) as session:
            if saved_model:
                embeddings = _served(tf, session, saved_model, batch["image"])
            else:
                embeddings = getattr(
                    model.build(dict(batch), train_phase=False), "embeddings", None
                )
                if embeddings is None:
                    raise ValueError(
                        f"{model.__name__}.build sets no embeddings: nothing to retrieve with"
                    )
                variables = graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
                checkpoints.restore(session, checkpoint, variables, averages=True)
            fetches = {"embeddings": tf.cast(embeddings, tf.float32)}
            fetches |= {key: batch[key] for key in ("id", "product", "category")}
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

            yield passes


def _served(tf, session, folder, image):
    """The embeddings of a SavedModel's `serving_default` signature for a batch of pictures.

    The TF1 loader reads SavedModels of both generations, and can feed them a tensor of this graph.
    """
    loader = tf.compat.v1.saved_model
    try:
        # The signature must be known before the graph is imported with its input replaced.
        with tf.Graph().as_default(), tf.compat.v1.Session() as other:
            meta = loader.load(other, [tf.saved_model.SERVING], folder)
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--saved_model={folder}: cannot be loaded: {reason}") from None
    signature = meta.signature_def["serving_default"]
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs) or "nothing"
        raise ValueError(f"--saved_model={folder}: takes {names}; one batch of pictures expected")
    outputs = signature.outputs
    if "embeddings" not in outputs and len(outputs) != 1:
        raise ValueError(f"--saved_model={folder}: gives {', '.join(outputs)} but no embeddings")
    (fed,) = signature.inputs.values()
    given = tf.cast(image, tf.dtypes.as_dtype(fed.dtype))
    loader.load(session, [tf.saved_model.SERVING], folder, input_map={fed.name: given})
    wanted = outputs["embeddings"] if "embeddings" in outputs else next(iter(outputs.values()))
    return session.graph.get_tensor_by_name(wanted.name)


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


def define_flags():
    text = flags.DEFINE_string
    text("model", None, "Model module, such as models.simple.", short_name="m")
    text("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    text("saved_model", None, "Folder of a SavedModel to embed with instead.")
    text("dataset", "retrieval_index", "Which of the model's datasets.")
    text("output", None, "Folder of the store.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of the stored numbers.")
    flags.DEFINE_integer("shard_rows", 65536, "Rows a shard, about.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "TensorFlow's threads (0: all cores).", lower_bound=0)


if __name__ == "__main__":
    from trainer import quiet

    quiet.import_tensorflow()
    define_flags()
    trainer_config.run(main)
