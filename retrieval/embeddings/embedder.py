"""`Embedder`: images to embeddings, by a checkpoint or a SavedModel, with one warm session.

    embedder = Embedder.of_experiment("models.ranker", "experiments/exp-ranker")
    vectors = embedder.embed(["photo.jpg", "other.png"])          # float32 [2, D]
    embedder.save("model")
    embedder = Embedder.load("model")       # in half a second, without TensorFlow's Python package

`retrieval.embeddings.passes` uses it for whole datasets and tables, so that an image gets the same
embedding wherever it is embedded.
"""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metriclearn.datasets import image_files
from retrieval.embeddings import c_library, decoding
from trainer import commandline, files, quiet

NOTE = os.path.join("assets.extra", "prototrain.json")  # as `trainer.export` has it
NOTED = ("channels", "boxes", "max_pixels", "source", "tensors")  # in a saved model's note


class Embedder:
    """Turns images into embeddings. Safe to use from several threads.

    Make one with `of_experiment`, `of_saved_model` or `load`; it is also a context manager that
    closes itself.

    Attributes:
      size: (height, width) that images are resized to, or None if it embeds its own datasets only.
      channels: 3 (RGB) or 1 (gray).
      boxes: whether to crop images to their boxes, where a table has any.
      dimensions: D, the length of an embedding.
      max_pixels: size above which an image file is refused.
      resizing: how images get their size, fields of `metriclearn.augment.Resizing` by name; {} for
        the usual.
      source: what the embeddings depend on, as JSON values: weights (`checkpoint_sha256`) and
        configuration by hash, preprocessing.
      inputs: names of the arrays that `run` takes.
      texts: the model's function that returns its text tower, see `save`; None without one.
    """

    size: tuple[int, int] | None
    channels: int
    boxes: bool
    dimensions: int
    max_pixels: int
    source: dict
    inputs: tuple[str, ...]
    resizing: dict
    texts: Callable | None

    def __init__(self, session, inputs, output, frozen=None, *, size, channels, source, dimensions,
                 boxes=True, max_pixels=image_files.MAX_PIXELS, tensors=None,
                 resizing=None):  # fmt: skip
        """Internal.

        Args:
          session: a `tf.compat.v1.Session` or a `c_library.Session`.
          inputs: {name: tensor to feed, or its name}.
          output: the embeddings [B, D], or their name.
          frozen: the features [B, F] of the unchanged backbone, if the model offers them.
          size, channels, source, dimensions, boxes, max_pixels, resizing: the attributes.
          tensors: names of the tensors that decode images; None for a graph to put them into.
        """
        self._session, self._fed, self._output = session, inputs, output
        fed = list(inputs.values())
        self._run = session.make_callable(output, fed)
        self._run_both = None if frozen is None else session.make_callable([output, frozen], fed)
        self.size, self.channels, self.source = size, channels, source
        self.boxes, self.max_pixels, self.dimensions = boxes, max_pixels, dimensions
        self.inputs, self.resizing = tuple(inputs), resizing or {}
        self._tensors, self._decode = tensors, None
        self.texts = None

    @classmethod
    def of_graph(cls, build: Callable, *, threads: int = 0, **about: Any) -> "Embedder":
        """An embedder with a graph of its own.

        Args:
          build: `build(session)` makes the graph and gives its variables their values; it returns
            ({name: placeholder}, embeddings [B, D]) and may add the frozen features [B, F].
          threads: for TensorFlow, 0 for all cores.
          about: size, channels, source, boxes and max_pixels, see the attributes. Without a size,
            it is that of the placeholder `image` where that is the only one.

        Raises:
          ValueError: the output is not [B, D].
        """
        import tensorflow as tf

        session = _new_session(threads)
        with session.graph.as_default():
            inputs, *outputs = build(session)
            output, *frozen = [tf.cast(each, tf.float32) for each in outputs]
            if output.shape.rank != 2:
                raise ValueError(f"the embeddings are {output.shape}, not [batch, dimensions]")
            about["dimensions"] = int(output.shape[1] or 0)
            return cls(session, inputs, output, *frozen, **about)

    @classmethod
    def load(cls, folder: str | os.PathLike, threads: int = 0) -> "Embedder":
        """An embedder that `save` wrote, run by TensorFlow's C library where there is one.

        Args:
          folder: the saved model.
          threads: for TensorFlow, 0 for all cores.

        Raises:
          ValueError: the folder holds no such model, or a damaged one.
        """
        folder = os.fspath(folder)
        needed = {*NOTED, "image_size", "features"}
        note = files.known_keys(os.path.join(folder, NOTE), needed, "a model that embeds images")
        tensors = note["tensors"]
        try:
            session = session_of(folder, threads)
            made = cls(
                session,
                {"image": tensors["image"]},
                tensors["embeddings"],
                size=tuple(note["image_size"]),
                dimensions=note["features"],
                resizing=note.get("resizing"),
                **{name: note[name] for name in NOTED},
            )
            # A damaged one fails now; the first run of any other takes the time of many.
            made.run({"image": np.zeros((1, *note["image_size"], made.channels), np.uint8)})
        except Exception as error:  # TensorFlow raises many kinds for files that are damaged
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{folder}: the model cannot be loaded: {reason}") from error
        return made

    @classmethod
    def of_experiment(
        cls,
        model: Any,
        checkpoint: str | None = None,
        *,
        spec: Mapping | None = None,
        threads: int = 0,
        frozen: bool = False,
    ) -> "Embedder":
        """An embedder with the weights of a trained model.

        Args:
          model: a model module that has the configuration of its experiment, or a module's name.
          checkpoint: prefix of a checkpoint, its folder or its experiment. With a module's name,
            the configuration is that of the experiment; None is the one that the module names.
          spec: {name: TensorSpec} of the batches of the model's own datasets, if these will be
            embedded; None for images, which `model.build(None)` must take.
          threads: for TensorFlow, 0 for all cores.
          frozen: `run_both` also gives the features of the unchanged backbone, if the model offers
            them, see `passes.embed_datasets`; needs `spec`.

        Raises:
          ValueError: there is no checkpoint, it does not fit, or the model sets no embeddings.
        """
        import tensorflow as tf

        from trainer import checkpoints, experiment, export

        if isinstance(model, str):
            model = commandline.load_model(model)
            _, checkpoint = experiment.locate(model, (), checkpoint)
        assert checkpoint is not None
        source = {
            "model": model.__name__,
            "checkpoint": checkpoint,
            "checkpoint_sha256": fingerprint(checkpoint),
            "config_sha256": hashlib.sha256(model.config.to_json().encode()).hexdigest(),
        }
        found: dict = {"size": None, "channels": 3}
        offers = frozen and spec is not None and hasattr(model, "frozen_features")

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
            features = model.frozen_features(inputs, built) if offers else None
            checkpoints.restore(session, checkpoint, variables, averages=True)
            trained = {v.op.name for v in variables}
            every = session.graph.get_collection(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES)
            session.run([v.initializer for v in every if v.op.name not in trained])
            return (inputs, embeddings) if features is None else (inputs, embeddings, features)

        options: dict = {
            "boxes": _key(model, "dataset.bounding_boxes", True),
            "max_pixels": _key(model, "dataset.max_pixels", image_files.MAX_PIXELS),
        }
        if resizing := export.resizing(model):
            options["resizing"] = source["resizing"] = resizing
        made = cls.of_graph(build, size=None, channels=3, source=source, threads=threads, **options)
        made.size, made.channels = found["size"], found["channels"]
        made.texts = getattr(model, "texts", None)
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
        from retrieval.embeddings import texts

        v1 = tf.compat.v1
        try:
            found = saved_model.read(folder, input_range)
        except ValueError as error:
            raise ValueError(f"--saved_model={folder}: {error}") from None
        size, channels = _size_of(found, image_size), found.channels
        source: dict = {
            "checkpoint": folder,
            "checkpoint_sha256": found.fingerprint,
            "preprocessing": f"{channels} channels, {found.preprocessing}",
        }
        about: dict = {"size": size, "channels": channels, "source": source, "threads": threads}
        if found.resizing:
            about["resizing"] = source["resizing"] = found.resizing

        def build(session):
            images_in = v1.placeholder(tf.uint8, [None, *size, channels], "image")
            with v1.variable_scope("saved_model"):
                output = saved_model.apply(found, images_in, False)
            session.run([v1.global_variables_initializer(), v1.tables_initializer()])
            return {"image": images_in}, output

        try:
            made = cls.of_graph(build, **about)
            made.run({"image": np.zeros((1, *size, channels), np.uint8)})  # a damaged one fails now
        except Exception as error:  # TensorFlow raises many kinds for files that are damaged
            if isinstance(error, ValueError) and folder in str(error):
                raise
            reason = saved_model.first_line(error)
            raise ValueError(f"--saved_model={folder}: cannot be used: {reason}") from error
        made.texts = functools.partial(texts.of_saved_model, folder)
        return made

    def run(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Embeddings float32 [B, D] of one batch: the arrays that the model's inputs are called."""
        return self._run(*(batch[name] for name in self.inputs))

    def run_both(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """As `run`, with the features float32 [B, F] of the unchanged backbone, None without."""
        if self._run_both is None:
            return self.run(batch), None
        embeddings, features = self._run_both(*(batch[name] for name in self.inputs))
        return embeddings, features

    def embed(self, images: Sequence | np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Embeds images.

        Args:
          images: what `decode` takes; or one array [N, H, W, C].
          batch_size: images at a time.

        Returns:
          float32 [N, D].

        Raises:
          ValueError: see `decode`.
        """
        self._decoder()
        found = []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(images), batch_size):
                batch = list(pool.map(self.decode, images[start : start + batch_size]))
                found.append(self.run({"image": np.stack(batch)}))
        return np.concatenate([np.zeros((0, self.dimensions), np.float32), *found])

    def decode(self, image: str | os.PathLike | bytes | np.ndarray) -> np.ndarray:
        """Returns an image as the model takes it, uint8 [*size, channels]; no batch.

        Args:
          image: path, the bytes of a file, or uint8 [H, W, C] of any size with C = 3 or 1.

        Raises:
          ValueError: a file that cannot be read, by name; an array of another shape or dtype.
        """
        return self._decoder()(image)

    def _decoder(self):
        """The function behind `decode`."""
        if self.size is None:
            raise ValueError("this model takes no images alone: it can embed its own datasets only")
        if self._decode is None:
            about = self.size, self.channels, self.max_pixels, self.resizing
            self._tensors = self._tensors or decoding.add_to_graph(self._session.graph, *about)
            # One assignment, since several threads may be here.
            self._decode = decoding.decoder(self._session, self._tensors, *about)
        return self._decode

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a SavedModel that `load` reads, and any other program that takes uint8 images.

        The text tower of the model, if it has one (see `trainer.export.text_tower`), goes to the
        folder `text` within, which `TextEmbedder` reads.

        Args:
          folder: a folder that does not exist yet.

        Raises:
          ValueError: this embedder takes no images alone, or it was loaded itself.
        """
        from retrieval.embeddings.folding import folded
        from trainer import export

        self._decoder()
        if isinstance(self._output, str):
            raise ValueError("an embedder that was loaded is not saved again: copy its folder")
        (image,) = self._fed.values()
        tensors = self._tensors | {"image": image.name, "embeddings": self._output.name}
        note = {name: getattr(self, name) for name in NOTED if name != "tensors"}
        note["resizing"] = self.resizing
        note |= {"tensors": tensors, "image_size": list(self.size or ())}
        with self._session.graph.as_default():
            note |= {"features": self.dimensions}
            tower, note["no_texts"] = export.text_tower(self)
        with folded(self._session, tensors.values()) as session, session.graph.as_default():
            image, output = map(session.graph.get_tensor_by_name, (image.name, self._output.name))
            export.write(session, os.fspath(folder), {"image": image}, {"embeddings": output}, note)
        if tower is not None:
            tower.save(os.path.join(folder, export.TEXT))

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


def session_of(folder, threads):
    """A session with a SavedModel: of the C library, else of TensorFlow's Python package."""
    try:
        return c_library.Session(folder, threads)
    except (c_library.Unavailable, RuntimeError):  # an operation that only the package registers
        quiet.import_tensorflow()
        import tensorflow as tf

        session = _new_session(threads)
        with session.graph.as_default():
            tf.compat.v1.saved_model.load(session, ["serve"], folder)
        return session


def _new_session(threads):
    """A session of TensorFlow's Python package with a graph of its own."""
    import tensorflow as tf

    v1 = tf.compat.v1
    config = v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=-1 if threads == 1 else threads,  # as `c_library.Session`
    )
    return v1.Session(graph=tf.Graph(), config=config)


def fingerprint(checkpoint) -> str:
    """Hash of the files that hold a checkpoint's weights: what makes two embeddings comparable."""
    folder, start = os.path.dirname(checkpoint), os.path.basename(checkpoint) + "."
    paths = [os.path.join(folder, n) for n in os.listdir(folder or ".") if n.startswith(start)]
    paths = [path for path in paths if not path.endswith(".meta")]
    sums = [f"{os.path.basename(path)} {files.sha256(path)}" for path in sorted(paths)]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
