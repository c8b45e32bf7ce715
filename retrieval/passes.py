"""Passes over data sets that embed their pictures, in a graph and session of their own."""

import contextlib
import re

import numpy as np

from retrieval import progress
from retrieval.store import Embedded

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
