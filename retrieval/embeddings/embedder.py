"""`Embedder`: images to embeddings, by a checkpoint or a SavedModel, with one warm session.

    embedder = Embedder.of_experiment("models.ranker", "experiments/exp-ranker")
    vectors = embedder.embed(["photo.jpg", "other.png"])          # float32 [2, D]

`embed_datasets` and the functions that fill stores use it too, so that an image gets the same
embedding wherever it is embedded.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metriclearn.datasets import ProductTable, image_files
from retrieval.embeddings import images, store
from retrieval.embeddings.store import Embedded
from trainer import files


class Embedder:
    """Turns images into embeddings. Safe to use from several threads.

    Make one with `of_experiment` or `of_saved_model`; it is also a context manager that closes
    itself.

    Attributes:
      size: (height, width) that images are resized to, or None if it embeds its own datasets only.
      channels: 3 (RGB) or 1 (gray).
      boxes: whether to crop images to their boxes, where a table has any.
      dimensions: D, the length of an embedding.
      max_pixels: size above which an image file is refused.
      source: what the embeddings depend on, as JSON values: weights and configuration by hash,
        preprocessing.
    """

    size: tuple[int, int] | None
    channels: int
    boxes: bool
    dimensions: int
    max_pixels: int
    source: dict

    def __init__(self, build, *, size, channels, source, threads=0, boxes=True,
                 max_pixels=image_files.MAX_PIXELS):  # fmt: skip
        """Internal: `build(session)` returns ({name: placeholder}, embeddings [B, D])."""
        import tensorflow as tf

        v1 = tf.compat.v1
        self.graph = tf.Graph()
        config = v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
        )
        self._session = v1.Session(graph=self.graph, config=config)
        self._decode = None
        with self.graph.as_default():
            self._inputs, output = build(self._session)
            output = tf.cast(output, tf.float32)
            if output.shape.rank != 2:
                raise ValueError(f"the embeddings are {output.shape}, not [batch, dimensions]")
            self._run = self._session.make_callable(output, list(self._inputs.values()))
        self.size, self.channels, self.source = size, channels, source
        self.boxes, self.max_pixels = boxes, max_pixels
        self.dimensions = int(output.shape[1] or 0)

    @classmethod
    def of_experiment(
        cls,
        model: Any,
        checkpoint: str | None = None,
        *,
        spec: Mapping | None = None,
        threads: int = 0,
    ) -> "Embedder":
        """An embedder with the weights of a trained model.

        Args:
          model: a model module that has the configuration of its experiment, or a module's name.
          checkpoint: prefix of a checkpoint, its folder or its experiment. With a module's name,
            the configuration is that of the experiment; None is the one that the module names.
          spec: {name: TensorSpec} of the batches of the model's own datasets, if these will be
            embedded; None for images, which `model.build(None)` must take.
          threads: for TensorFlow, 0 for all cores.

        Raises:
          ValueError: there is no checkpoint, it does not fit, or the model sets no embeddings.
        """
        import tensorflow as tf

        from trainer import checkpoints, experiment
        from trainer import config as config_lib

        if isinstance(model, str):
            model = config_lib.load_model(model)
            _, checkpoint = experiment.locate(model, (), checkpoint)
        assert checkpoint is not None
        source = {
            "model": model.__name__,
            "checkpoint": checkpoint,
            "checkpoint_sha256": fingerprint(checkpoint),
            "config_sha256": hashlib.sha256(model.config.to_json().encode()).hexdigest(),
        }
        found: dict = {"size": None, "channels": 3}

        def build(session):
            if spec is None:
                built, placeholder = _build_on_placeholder(model)
                inputs = {"image": placeholder}
                _, height, width, channels = placeholder.shape.as_list()
                found.update(size=(height, width), channels=channels)
            else:
                inputs = {k: tf.compat.v1.placeholder(s.dtype, s.shape) for k, s in spec.items()}
                built = model.build(dict(inputs), train_phase=False)
            embeddings = getattr(built, "embeddings", None)
            if embeddings is None:
                name = model.__name__
                raise ValueError(f"{name}.build sets no embeddings: nothing to retrieve with")
            variables = session.graph.get_collection(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES)
            checkpoints.restore(session, checkpoint, variables, averages=True)
            return inputs, embeddings

        options = {
            "boxes": _key(model, "dataset.bounding_boxes", True),
            "max_pixels": _key(model, "dataset.max_pixels", image_files.MAX_PIXELS),
        }
        made = cls(build, size=None, channels=3, source=source, threads=threads, **options)
        made.size, made.channels = found["size"], found["channels"]
        return made

    @classmethod
    def of_saved_model(
        cls,
        folder: str,
        *,
        image_size: tuple[int, int] | None = None,
        input_range: str = "",
        threads: int = 0,
    ) -> "Embedder":
        """An embedder with a SavedModel of any origin.

        Args:
          folder: the SavedModel, as `models.backbones.saved_model.read` takes it.
          image_size: (height, width); what the SavedModel takes if None.
          input_range: the pixels it wants, one of `models.backbones.saved_model.RANGES`; '' if the
            SavedModel says it.
          threads: for TensorFlow, 0 for all cores.

        Raises:
          ValueError: not a SavedModel of images, or its image size or pixel range is unknown.
        """
        import tensorflow as tf

        from models.backbones import saved_model

        v1 = tf.compat.v1
        try:
            found = saved_model.read(folder, input_range)
        except ValueError as error:
            raise ValueError(f"--saved_model={folder}: {error}") from None
        size, channels = _size_of(found, image_size), found.channels
        source = {
            "checkpoint": folder,
            "checkpoint_sha256": found.fingerprint,
            "preprocessing": f"{channels} channels, {found.preprocessing}",
        }

        def build(session):
            images_in = v1.placeholder(tf.uint8, [None, *size, channels], "image")
            with v1.variable_scope("saved_model"):
                output = saved_model.apply(found, images_in, False)
            session.run([v1.global_variables_initializer(), v1.tables_initializer()])
            return {"image": images_in}, output

        try:
            made = cls(build, size=size, channels=channels, source=source, threads=threads)
            made.run({"image": np.zeros((1, *size, channels), np.uint8)})  # a damaged one fails now
        except Exception as error:  # TensorFlow raises many kinds for files that are damaged
            if isinstance(error, ValueError) and folder in str(error):
                raise
            reason = saved_model.first_line(error)
            raise ValueError(f"--saved_model={folder}: cannot be used: {reason}") from error
        return made

    def run(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Embeddings float32 [B, D] of one batch: the arrays that the model's inputs are called."""
        return self._run(*(batch[name] for name in self._inputs))

    def embed(self, images: Sequence | np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Embeds image files or decoded images.

        Args:
          images: paths, or uint8 arrays [H, W, C] of any size with C = 3 or 1; or one [N, H, W, C].
          batch_size: images at a time.

        Returns:
          float32 [N, D].

        Raises:
          ValueError: a file that cannot be read, by name; an array of another shape or dtype.
        """
        decode = self._decoder()
        found = []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(images), batch_size):
                batch = list(pool.map(decode, images[start : start + batch_size]))
                found.append(self.run({"image": np.stack(batch)}))
        return np.concatenate([np.zeros((0, self.dimensions), np.float32), *found])

    def decode(self, image: Any) -> np.ndarray:
        """uint8 [*size, channels], as `run` takes it, of a path, a file's bytes or an array.

        Raises:
          ValueError: it cannot be read; of bytes, the message only says why.
        """
        return self._decoder()(image)

    def _decoder(self):
        """A function: a path, bytes or an array -> uint8 [*size, channels]."""
        if self.size is None:
            raise ValueError("this model takes no images alone: it can embed its own datasets only")
        if self._decode is not None:
            return self._decode
        import tensorflow as tf

        from metriclearn.datasets import images as image_tensors

        v1 = tf.compat.v1
        with self.graph.as_default():
            content = v1.placeholder(tf.string, [])
            pixels = v1.placeholder(tf.uint8, [None, None, self.channels])
            image = image_tensors.decode(
                content, channels=self.channels, least=self.size, max_pixels=self.max_pixels
            )[0]
            of_file = self._session.make_callable(image_tensors.resize(image, self.size), [content])
            of_array = self._session.make_callable(
                image_tensors.resize(pixels, self.size), [pixels]
            )

        def decode(given):
            if isinstance(given, np.ndarray):
                return of_array(_pixels(given, self.channels))
            if isinstance(given, bytes):
                try:
                    return of_file(given)
                except (ValueError, tf.errors.OpError) as error:
                    raise ValueError(str(_reason(given, error, self.max_pixels))) from None
            try:
                if not os.path.isfile(given):
                    reason = "not a regular file" if os.path.exists(given) else "no such file"
                    raise ValueError(reason)
                with open(given, "rb") as file:
                    return of_file(file.read())
            except (OSError, ValueError, tf.errors.OpError) as error:
                reason = _reason(given, error, self.max_pixels)
                raise ValueError(f"cannot read the image {str(given)!r}: {reason}") from None

        self._decode = decode
        return decode

    def batches(self, make, what: str, *, reduced: bool = False) -> Iterable[Embedded]:
        """Yields `Embedded` batch by batch of the dataset that `make()` returns."""
        with images.opened(make, what, reduced=reduced, keys=(*self._inputs, "image")) as batches:
            for batch in batches:
                yield Embedded(self.run(batch), **images.facts(batch))

    def close(self) -> None:
        """Frees the session."""
        self._session.close()

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _key(model, name, default):
    return model.config[name] if name in model.config else default  # noqa: SIM401 (it has no get)


def _build_on_placeholder(model):
    """(what `model.build(None)` returns, its placeholder of images, uint8 [None, H, W, C])."""
    import tensorflow as tf

    graph = tf.compat.v1.get_default_graph()
    try:
        built = model.build(None, train_phase=False)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{model.__name__}.build(inputs=None) fails ({type(error).__name__}: {error}): "
            "without inputs it must make placeholders, as models.simple does"
        ) from error
    found = [op.outputs[0] for op in graph.get_operations() if op.type == "Placeholder"]
    found = [t for t in found if t.dtype == tf.uint8 and t.shape.rank == 4]
    if len(found) != 1 or None in found[0].shape.as_list()[1:]:
        raise ValueError(
            f"{model.__name__}.build(inputs=None) makes no placeholder of images, uint8 "
            "[None, H, W, C]: it can embed its own datasets only (--dataset)"
        )
    return built, found[0]


def _size_of(found, asked):
    """(height, width) of the images for a SavedModel."""
    known = found.image_size
    if asked is None and known is None:
        raise ValueError(
            f"--saved_model={found.folder}: takes any size; choose one: --image_size=224"
        )
    if asked and known and found.fixed and tuple(asked) != tuple(known):
        raise ValueError(
            f"--image_size={asked[0]},{asked[1]}: {found.folder} takes {known[0]} x {known[1]} only"
        )
    return tuple(asked or known)


def _pixels(array, channels):
    """uint8 [H, W, channels] of an array; gray and RGB are converted into each other."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"an image must be uint8 [H, W, C], not {array.dtype} {array.shape}")
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] == channels:
        return array
    if array.shape[2] == 1:
        return np.repeat(array, channels, axis=2)
    if array.shape[2] == 3:
        weights = np.array([0.299, 0.587, 0.114])
        return np.round(array @ weights).astype(np.uint8)[..., None]
    raise ValueError(f"an image must have {channels} channels, not {array.shape[2]}")


def _reason(path, error, max_pixels):
    """Why a file could not be decoded, in our own words."""
    if isinstance(error, ValueError):
        return error
    try:
        image_files.read(path, max_pixels=max_pixels)
    except ValueError as clearer:
        return clearer
    return getattr(error, "strerror", None) or "the file is truncated or damaged"


def fingerprint(checkpoint) -> str:
    """Hash of the files that hold a checkpoint's weights: what makes two embeddings comparable."""
    folder, start = os.path.dirname(checkpoint), os.path.basename(checkpoint) + "."
    paths = [os.path.join(folder, n) for n in os.listdir(folder or ".") if n.startswith(start)]
    paths = [path for path in paths if not path.endswith(".meta")]
    sums = [f"{os.path.basename(path)} {files.sha256(path)}" for path in sorted(paths)]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


# ---------------------------------------------------------------------------- passes


def embed_datasets(model, names, checkpoint, *, threads=0) -> dict:
    """Embeds some of a model's datasets in memory, with the reduced images.

    Args:
      model: a model module.
      names: which of its datasets, such as 'retrieval_query'.
      checkpoint: prefix as `trainer.checkpoints.latest` returns it.
      threads: for TensorFlow, 0 for all cores.

    Returns:
      {name: Embedded}.

    Raises:
      ValueError: the model sets no embeddings, a dataset is missing or empty, the checkpoint does
        not fit the model, or an image cannot be read.
    """
    found = {}
    spec = images.spec_of(model, names)
    with Embedder.of_experiment(model, checkpoint, spec=spec, threads=threads) as embedder:
        for name in names:

            def make(name=name):
                return images.of_model(model, [name])[name]

            parts = list(embedder.batches(make, f"embedding {name}", reduced=True))
            if not parts:
                raise ValueError(f"dataset {name!r} is empty: there is nothing to embed")
            found[name] = store.joined(parts)
    return found


def embed_to_store(model, name, folder, embedder, **options) -> dict:
    """Embeds one of a model's datasets into a store, or resumes; returns the store's manifest.

    Args:
      model: a model module.
      name: which of its datasets.
      folder: the store.
      embedder: an `Embedder` made for the dataset's spec, or of a SavedModel.
      options: dtype, shard_rows: as in `store.fill`.
    """
    source = {"dataset": name, "dataset_model": model.__name__} | embedder.source

    def rest(done):
        def make():
            return images.of_model(model, [name])[name].skip(done)

        return ((items, []) for items in embedder.batches(make, f"embedding {name}"))

    return store.fill(folder, source, rest, **options)


def embed_table(rows: ProductTable, folder, embedder, *, on_bad_image="error", batch_size=64,
                **options) -> dict:  # fmt: skip
    """Embeds the images of a table into a store, or resumes; returns the store's manifest.

    Args:
      rows: a ProductTable, as `images.table` returns it.
      folder: the store.
      embedder: an `Embedder` of images.
      on_bad_image: 'error' or 'skip'; the manifest names those skipped, as `skipped`.
      batch_size: images at a time.
      options: dtype, shard_rows: as in `store.fill`.
    """
    if embedder.size is None:
        embedder._decoder()
    height, width = embedder.size
    boxes = embedder.boxes and rows.boxes is not None
    source = embedder.source | {
        "images_sha256": _listing(rows, boxes),
        "image_size": [height, width],
        "boxes": boxes,
        "on_bad_image": on_bad_image,
        "batch_size": batch_size,  # shards end where batches do
    }

    def rest(done):
        def make():
            return images.of_table(
                rows, embedder.size, embedder.channels, batch_size, on_bad_image=on_bad_image,
                start_batch=done, boxes=boxes, max_pixels=embedder.max_pixels,
            )  # fmt: skip

        with images.opened(make, "embedding images", keys=("image",)) as batches:
            for batch in batches:
                found = np.zeros((0, embedder.dimensions), np.float32)
                if len(batch["id"]):
                    found = embedder.run(batch)
                skipped = images.text(batch.get("skipped", ())).tolist()
                yield Embedded(found, **images.facts(batch)), skipped

    return store.fill(folder, source, rest, **options)


def _listing(rows, boxes):
    """Hash of what a table lists: ids, files with their sizes and times, products, boxes."""
    stamps = map(_stamp, rows.paths.tolist())
    columns = (rows.ids, rows.paths, rows.products, rows.categories)
    rows_of = zip(*(column.tolist() for column in columns), stamps, strict=True)
    lines = "\n".join("\t".join(row) for row in rows_of)
    digest = hashlib.sha256(lines.encode())
    if boxes:
        digest.update(rows.boxes.tobytes())
    return digest.hexdigest()


def _stamp(path):
    """Size and time of a file, which tell that it changed; '' if there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"
