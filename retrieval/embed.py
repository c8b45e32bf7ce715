"""Embeddings of a model's datasets, from a checkpoint."""

import numpy as np

from retrieval import progress
from retrieval.evaluation import Embedded

# A picture counts as "raw pixels" at no more than this many pixels a side.
PIXEL_SIDE = 32


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of `model.datasets()` with the weights of a checkpoint.

    model: a model module. names: which of its datasets, such as 'retrieval_query'. checkpoint:
    prefix as `trainer.checkpoints.latest` returns it. threads: for TensorFlow, 0 for all cores.
    Returns {name: Embedded}. Raises ValueError where the model sets no embeddings, a dataset is
    missing, or the checkpoint does not fit the model.
    """
    import tensorflow as tf

    from trainer import checkpoints

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        datasets, spec = _alike(_datasets(model, names))
        iterator = v1.data.Iterator.from_structure(
            {key: s.dtype for key, s in spec.items()}, {key: s.shape for key, s in spec.items()}
        )
        starts = {name: iterator.make_initializer(datasets[name]) for name in names}
        batch = iterator.get_next()
        outputs = model.build(dict(batch), train_phase=False)
        if getattr(outputs, "embeddings", None) is None:
            raise ValueError(f"{model.__name__}.build sets no embeddings: nothing to retrieve with")
        fetches = {"embeddings": tf.cast(outputs.embeddings, tf.float32)}
        fetches |= {key: batch[key] for key in ("id", "product", "category", "label")}
        fetches["image"] = _reduced(tf, batch["image"])
        variables = graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
        config = v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
        )
        with v1.Session(config=config) as session:
            checkpoints.restore(session, checkpoint, variables)
            step = session.make_callable(fetches)
            # A negative cardinality means unknown.
            counts = session.run(
                {name: tf.data.experimental.cardinality(datasets[name]) for name in names}
            )
            found = {}
            for name in names:
                session.run(starts[name])
                parts = progress.track(
                    _until_end(step, tf.errors.OutOfRangeError),
                    counts[name] if counts[name] > 0 else None,
                    f"embedding {name}",
                    size=lambda part: len(part["id"]),
                )
                found[name] = _joined(list(parts), name)
            return found


def _until_end(step, end):
    while True:
        try:
            yield step()
        except end:
            return


def _joined(parts, name):
    if not parts:
        raise ValueError(f"dataset {name!r} is empty: there is nothing to embed")
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Embedded(
        columns["embeddings"],
        _text(columns["id"]),
        _text(columns["product"]),
        _text(columns["category"]),
        columns["image"],
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
            while len(found) < len(wanted):
                try:
                    part = step()
                except tf.errors.OutOfRangeError:
                    break
                for key, image in zip(_text(part["id"]), part["image"], strict=True):
                    if key in wanted:
                        found[key] = image
    return found


def _datasets(model, names):
    datasets = model.datasets()
    missing = [name for name in names if name not in datasets]
    if missing:
        raise ValueError(f"{model.__name__}.datasets() returns no {missing[0]!r}")
    return datasets


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
