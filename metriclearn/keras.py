"""The losses in Keras 3: saved with the model, losses with weights, recall during training.

A loss function can be used in `compile`: `model.compile(optimizer, metriclearn.triplet_loss)`.
`Loss` adds options, integer labels of any size, and `.keras` files. `ProxyLoss`, `MarginLoss` and
`MemoryLoss` are layers, since they have weights. `RecallAtK` and `batches`, for `fit`, are defined
in `metriclearn.fitting`. `import metriclearn` imports none of these, because they need Keras on
TensorFlow.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from metriclearn.fitting import RecallAtK as RecallAtK
from metriclearn.fitting import batches as batches
from metriclearn.inputs import TensorLike, label_tensor
from metriclearn.losses import LOSSES, PROXY_LOSSES, weighted_sum
from metriclearn.losses.pairwise import margin_loss
from metriclearn.memory import Memory, enqueue
from metriclearn.miners import MINERS
from metriclearn.registry import check_options, resolve

# Format of configurations in saved models; raised if an older reader would misread a newer one.
FORMAT = 1

_serializable = keras.saving.register_keras_serializable("metriclearn")


class _Configured:
    """Common part of losses and layers: a name or sum of losses, options, and their saved form."""

    def _set_loss(
        self,
        loss: str | Sequence | Callable,
        options: dict[str, Any],
        table: dict[str, Callable[..., tf.Tensor]],
    ) -> None:
        self.loss, self.options = loss, options
        if not isinstance(loss, str) and not callable(loss):
            check_options(lambda: None, options, "a sum of losses")
            entries: Any = loss
            terms = [(name, weight, _bound(*rest)) for name, weight, *rest in entries]
            self._function: Callable[..., tf.Tensor] = weighted_sum(*terms)
            return
        function = resolve(loss, table, "loss")
        check_options(function, options, f"loss {loss!r}" if isinstance(loss, str) else "the loss")
        if options.get("reduction") == "none":
            raise ValueError("reduction='none' gives no scalar to minimize")
        self._function = functools.partial(function, **_bound(options))

    def get_config(self) -> dict[str, Any]:
        for option, value in {"loss": self.loss, **self.options}.items():
            if callable(value):
                raise ValueError(
                    f"{option}={getattr(value, '__name__', value)!r} is a function, which cannot "
                    "be saved: give its name in metriclearn"
                )
        config = {"format": FORMAT, "name": self.name, "loss": self.loss}  # type: ignore[attr-defined]
        return config | self.options

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        found = config.pop("format", FORMAT)
        if found > FORMAT:
            raise ValueError(
                f"this model was saved by a newer metriclearn (format {found} of {cls.__name__}; "
                f"this one reads up to {FORMAT}): update metriclearn"
            )
        try:
            return cls(**config)
        except ValueError as error:
            raise ValueError(f"saved by another version of metriclearn? {error}") from None


@_serializable
class Loss(_Configured, keras.losses.Loss):
    """A loss of `LOSSES` for `model.compile`; it is saved in `.keras` files.

        model.compile("adam", Loss("triplet", margin=0.2, miner="semi_hard"))
        model.compile("adam", Loss([("triplet", 1.0, {"margin": 0.1}), ("histogram", 0.5)]))

    Labels are integers of any width, strings, or whole floats, `[B]` or `[B, 1]`, as in the data
    set (with a plain function, Keras converts them to float32). Embeddings are `[B, D]`, computed
    in at least float32, also with mixed precision. Under a `tf.distribute` strategy each replica
    mines in its part of the batch, and the loss is the mean over replicas.

    Args:
        loss: a name in `LOSSES`; a function `(labels, embeddings)`; or a list of (name, weight) or
            (name, weight, options) for a weighted sum.
        name: name in logs.
        options: options of the loss. `miner` may also be (name, options of the miner).

    Raises:
        ValueError: a name or option is unknown. When called: labels or embeddings are invalid,
            there are several outputs, or sample weights, which a loss over pairs cannot use.
    """

    def __init__(
        self,
        loss: str | Sequence | Callable = "triplet",
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self._set_loss(loss, options, LOSSES)
        super().__init__(name=name or (loss if isinstance(loss, str) else "metric_loss"))

    def __call__(
        self, y_true: TensorLike, y_pred: TensorLike, sample_weight: TensorLike | None = None
    ) -> tf.Tensor:
        # Not Keras's method, which would convert labels to float32.
        if sample_weight is not None:
            raise ValueError(
                f"{self.name} takes no sample_weight or class_weight: its terms are pairs and "
                "triplets, not examples"
            )
        if isinstance(y_pred, dict | list | tuple) or isinstance(y_true, dict | list | tuple):
            raise ValueError(
                f"{self.name} compares the embeddings of one output with one vector of labels, but "
                "the model has several: compile with one loss per output, such as "
                "loss={'embedding': ...}"
            )
        with tf.name_scope(self.name):
            return _share_of_replica(self.call(y_true, y_pred))

    def call(self, y_true: TensorLike, y_pred: TensorLike) -> tf.Tensor:
        return self._function(y_true, y_pred)


class _LossLayer(_Configured, keras.layers.Layer):
    """A loss with weights. `call(labels, embeddings)` returns the loss or the embeddings.

    In a model's `compute_loss` or a training loop, call it to get the loss. In a functional model,
    use `output="embeddings"`: it then adds its loss to the model and returns the embeddings, so
    that it can be part of the model; compile without a loss.
    """

    def __init__(
        self,
        loss: str,
        table: dict[str, Callable[..., tf.Tensor]],
        options: dict[str, Any],
        output: str,
        name: str | None,
    ) -> None:
        # Keras would cast labels given as floats to half precision.
        super().__init__(name=name, autocast=False)
        self._set_loss(loss, options, table)
        self.passes_on = resolve(output, {"loss": False, "embeddings": True}, "output")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"output": "embeddings" if self.passes_on else "loss"}

    def _finish(self, value: tf.Tensor, embeddings: TensorLike) -> tf.Tensor:
        if self.passes_on:
            self.add_loss(value)
            return embeddings
        return _share_of_replica(value)


@_serializable
class ProxyLoss(_LossLayer):
    """A loss of `PROXY_LOSSES` with its proxies as a weight; see `metriclearn.losses.proxies`.

        loss = ProxyLoss("arcface", classes=100)
        value = loss(labels, embeddings)

    Args:
        loss: a name in `PROXY_LOSSES`.
        classes: C; labels are whole numbers in [0, C).
        centers: proxies per class, for 'soft_triple' and 'sub_center_arcface'.
        output: 'loss' or 'embeddings', what a call returns.
        name: of the layer.
        options: the loss's.
    """

    def __init__(
        self,
        loss: str = "proxy_anchor",
        *,
        classes: int,
        centers: int | None = None,
        output: str = "loss",
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(loss, PROXY_LOSSES, options, output, name)
        self.classes, self.centers = classes, centers

    def build(self, labels_shape: tuple, embeddings_shape: tuple) -> None:
        width = embeddings_shape[-1]
        shape = (
            (self.classes, width) if self.centers is None else (self.classes, self.centers, width)
        )
        self.proxies = self.add_weight(
            shape=shape,
            initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            name="proxies",
        )

    def call(self, labels: TensorLike, embeddings: TensorLike) -> tf.Tensor:
        value = self._function(labels, embeddings, tf.convert_to_tensor(self.proxies))
        return self._finish(value, embeddings)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"classes": self.classes, "centers": self.centers}


@_serializable
class MarginLoss(_LossLayer):
    """`margin_loss` with one learned boundary per class (arXiv 1706.07567, section 4.2).

    Args:
        classes: C; labels are whole numbers in [0, C).
        beta: initial value of the boundaries.
        output: 'loss' or 'embeddings', what a call returns.
        name: of the layer.
        options: those of `margin_loss`.
    """

    def __init__(
        self,
        *,
        classes: int,
        beta: float = 1.2,
        output: str = "loss",
        name: str | None = None,
        loss: str = "margin",
        **options: Any,
    ) -> None:
        super().__init__(loss, {"margin": margin_loss}, options, output, name)
        self.classes, self.beta = classes, beta

    def build(self, labels_shape: tuple, embeddings_shape: tuple) -> None:
        self.boundaries = self.add_weight(
            shape=(self.classes,),
            initializer=keras.initializers.Constant(self.beta),
            name="boundaries",
        )

    def call(self, labels: TensorLike, embeddings: TensorLike) -> tf.Tensor:
        # The loss gets the labels as given, and checks them.
        beta = tf.gather(tf.convert_to_tensor(self.boundaries), label_tensor(labels))
        return self._finish(self._function(labels, embeddings, beta=beta), embeddings)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"classes": self.classes, "beta": self.beta}


@_serializable
class MemoryLoss(_LossLayer):
    """A loss on the batch plus the same loss against embeddings of past batches.

    Wang, Zhang, Huang, Scott: Cross-Batch Memory for Embedding Learning (arXiv 1912.06798).
    Validation computes only the loss of the batch and does not use the memory.

    Args:
        loss: a name in `LOSSES` of a loss that takes references.
        size: number of examples in the memory.
        start: number of examples before the memory is used, because embeddings change quickly at
            first.
        output: 'loss' or 'embeddings', what a call returns.
        name: of the layer.
        options: the loss's.
    """

    def __init__(
        self,
        loss: str = "contrastive",
        *,
        size: int = 8192,
        start: int = 0,
        output: str = "loss",
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(loss, LOSSES, options, output, name)
        check_options(resolve(loss, LOSSES, "loss"), ["references"], f"loss {loss!r}")
        self.size, self.start = size, start

    def build(self, labels_shape: tuple, embeddings_shape: tuple) -> None:
        def weight(name: str, shape: tuple, dtype: str) -> Any:
            return self.add_weight(
                shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=name
            )

        self.labels = weight("labels", (self.size,), "int64")
        self.embeddings = weight("embeddings", (self.size, embeddings_shape[-1]), "float32")
        self.total = weight("total", (), "int64")

    def call(
        self, labels: TensorLike, embeddings: TensorLike, training: bool | None = None
    ) -> tf.Tensor:
        value = self._function(labels, embeddings)
        if training:
            if tf.distribute.get_strategy().num_replicas_in_sync > 1:
                raise ValueError(f"{self.name}: replicas cannot share a cross-batch memory")
            memory = Memory(*(v.value for v in (self.labels, self.embeddings, self.total)))
            used = tf.convert_to_tensor(memory.total) >= self.start
            references = enqueue(memory, labels, embeddings)
            remembered = self._function(labels, embeddings, references=references)
            value += tf.where(used, remembered, tf.zeros_like(remembered))
        return self._finish(value, embeddings)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"size": self.size, "start": self.start}


def _bound(options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Options, with a miner given as (name, options) replaced by a function."""
    options = dict(options or {})
    if isinstance(options.get("miner"), list | tuple):
        name, given = options["miner"]
        miner = resolve(name, MINERS, "miner")
        check_options(miner, given, f"miner {name!r}")
        options["miner"] = functools.partial(miner, **given)
    return options


def _share_of_replica(value: tf.Tensor) -> tf.Tensor:
    """Keras sums the losses of replicas, but divides only losses that it reduces itself."""
    return value / tf.distribute.get_strategy().num_replicas_in_sync
