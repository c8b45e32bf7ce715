"""Passes over data sets that embed their pictures, in a graph and session of their own."""

import contextlib
import glob
import hashlib
import os
import re
import sys

import numpy as np

from retrieval import progress
from retrieval.embeddings import images, signature, store
from retrieval.embeddings.store import Embedded
from trainer import files

# A picture counts as "raw pixels" at no more than this many pixels a side.
PIXEL_SIDE = 32


@contextlib.contextmanager
def opened(datasets, embed, *, threads=0, images=True):
    """Yields a function that passes over a dataset by name, batch by batch.

    datasets: function that makes {name: dataset}. embed: function (session, batch) -> embeddings.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        datasets, spec = _alike(datasets())
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
            columns = ("id", "product", "category", "path", "unreadable")
            fetches |= {key: batch[key] for key in columns if key in batch}
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


def of_model(model, checkpoint):
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


def input_size(model):
    """((height, width), channels) of the pictures, uint8, that `model.build(None)` takes."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        try:
            model.build(None, train_phase=False)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{model.__name__}.build(inputs=None) fails ({type(error).__name__}: {error}): "
                "without inputs it must make placeholders, as models.simple does"
            ) from error
        found = [op.outputs[0] for op in graph.get_operations() if op.type == "Placeholder"]
    shapes = [t.shape.as_list() for t in found if t.dtype == tf.uint8 and t.shape.rank == 4]
    if len(shapes) != 1 or None in shapes[0][1:]:
        raise ValueError(
            f"{model.__name__}.build(inputs=None) makes no placeholder of pictures, uint8 "
            "[None, H, W, C]: it can embed its own datasets only (--dataset)"
        )
    _, height, width, channels = shapes[0]
    return (height, width), channels


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
        for reason in filter(None, part.get("unreadable", ())):
            path = part["path"][part["unreadable"] == reason][0].decode()
            raise ValueError(f"cannot read the picture {path!r}: {reason.decode()}")
        yield part


def joined(parts, name):
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
        dataset = datasets_of(model, [name])[name]
        batch = tf.compat.v1.data.make_one_shot_iterator(dataset).get_next()
        fetches = {"id": batch["id"], "image": batch["image"]}
        count = tf.data.experimental.cardinality(dataset)
        with tf.compat.v1.Session() as session:
            step, count = session.make_callable(fetches), session.run(count)
            parts = progress.track(
                _batches(step),
                count if count > 0 else None,
                f"pictures of {name} for the report",
                size=lambda part: len(part["id"]),
            )
            for part in parts:
                for key, image in zip(_text(part["id"]), part["image"], strict=True):
                    if key in wanted:
                        found[key] = image
                if len(found) == len(wanted):
                    break
    return found


def datasets_of(model, names):
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


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of `model.datasets()` with the weights of a checkpoint.

    model: a model module. names: which of its datasets, such as 'retrieval_query'. checkpoint:
    prefix as `trainer.checkpoints.latest` returns it. threads: for TensorFlow, 0 for all cores.
    Returns {name: Embedded}. Raises ValueError where the model sets no embeddings, a dataset is
    missing, or the checkpoint does not fit the model.
    """
    embed = of_model(model, checkpoint)
    with opened(lambda: datasets_of(model, names), embed, threads=threads) as batches:
        return {name: joined(list(batches(name)), name) for name in names}


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
        return {name: datasets_of(model, [name])[name].skip(done)}

    embed = of_model(model, checkpoint) if checkpoint else signature.embedder(saved_model)
    return _to_store(datasets, embed, folder, source, dtype, shard_rows, threads)


def embed_pictures(columns, folder, *, model=None, checkpoint=None, saved_model=None,
                   image_size=None, pixel_range=(0, 255), on_bad_image="error", batch_size=64,
                   dtype="float32", shard_rows=65536, threads=0):  # fmt: skip
    """Embeds picture files into a store, with a model's checkpoint or a SavedModel; its manifest.

    columns: as `images.of_folder` and `images.of_manifest` return them. on_bad_image: 'error' or
    'skip'; the manifest names those left out. Of a SavedModel, image_size: (height, width), what
    the signature takes if None; pixel_range: what black and white become where it takes floats.
    """
    if checkpoint:
        size, channels = input_size(model)
        embed = of_model(model, checkpoint)
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
        made, left_out = images.dataset(rows, size, channels, batch_size, on_bad_image)
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
        with opened(lambda: datasets(done), embed, threads=threads, images=False) as batches:
            (name,) = batches.names
            waiting, rows = [], 0
            for part in batches(name):
                waiting.append(part)
                rows += len(part["id"])
                if rows >= shard_rows:
                    store.append(folder, manifest, joined(waiting, name), len(waiting))
                    waiting, rows = [], 0
            if waiting:
                store.append(folder, manifest, joined(waiting, name), len(waiting))
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
