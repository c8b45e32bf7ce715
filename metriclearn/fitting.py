"""For `model.fit`: batches from a sampler, and a callback that measures recall.

Import both from `metriclearn.keras`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from metriclearn.inputs import TensorLike, label_array
from metriclearn.recall import first_ranks


class RecallAtK(keras.callbacks.Callback):
    """Logs retrieval figures after an epoch, as `val_recall@1` and so on.

    Put it before `EarlyStopping` and `ModelCheckpoint`, with `monitor="val_recall@1", mode="max"`.
    The search is exact: cosine in float64, equal scores in the order of the catalogue.
    `val_recall@k` is the fraction of queries with an item of their label among the k nearest,
    `val_mrr` the mean of 1 / rank of the first such item. Queries whose label is not in the
    catalogue are not counted.

    Args:
        queries: (inputs, labels), or a `tf.data.Dataset` of batches of them.
        catalogue: in the same form; None: each query is searched among the others.
        every: measure after the first epoch and every `every` epochs; in between, the last figures
            are logged.
        ks: the k of recall@k.
        embed: `inputs -> embeddings [N, D]`, or a Keras model; None: the trained model's `predict`.

    Raises:
        ValueError: at the first measurement: no query's label is in the catalogue, or labels or
            embeddings are invalid.
    """

    def __init__(
        self,
        queries: Any,
        catalogue: Any = None,
        every: int = 1,
        *,
        ks: Sequence[int] = (1, 5, 10),
        embed: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        if every < 1 or not ks or min(ks) < 1:
            raise ValueError(f"every={every} and ks={tuple(ks)} must be at least 1")
        self.queries, self.catalogue, self.every, self.ks = queries, catalogue, every, tuple(ks)
        self.embed = embed
        self.figures: dict[str, float] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if (epoch + 1) % self.every == 0 or not self.figures:
            self.figures = self._measure()
        if logs is not None:
            logs.update(self.figures)

    def _measure(self) -> dict[str, float]:
        query_labels, queries = self._embed(self.queries)
        if self.catalogue is None:
            ranks = first_ranks(query_labels, queries)
        else:
            ranks = first_ranks(query_labels, queries, *self._embed(self.catalogue))
        figures = {f"val_recall@{k}": float(np.mean(ranks <= k)) for k in self.ks}
        return figures | {"val_mrr": float(np.mean(1 / ranks))}

    def _embed(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        embed = self.embed or functools.partial(self.model.predict, verbose=0)
        if isinstance(embed, keras.Model):
            embed = functools.partial(embed.predict, verbose=0)
        if not isinstance(items, tf.data.Dataset):
            inputs, labels = items
            return label_array(labels), np.asarray(embed(inputs))
        labels = np.concatenate([np.asarray(labels) for _, labels in items])
        return label_array(labels), np.asarray(embed(items.map(lambda inputs, _: inputs)))


def batches(
    sample: Callable[[Any], tf.Tensor],
    inputs: Any,
    labels: TensorLike,
    *,
    start: int = 0,
    steps: int | None = None,
) -> tf.data.Dataset:
    """The batches of a sampler for `model.fit`: (inputs, labels).

        sample = metriclearn.pk_sampler(labels, products=16, images=4)
        model.fit(batches(sample, images, labels), steps_per_epoch=100)

    Args:
        sample: `step -> rows`, a sampler.
        inputs: an array, or a nest of arrays, with one row per item. File names can be mapped to
            images afterwards.
        labels: `[N]`.
        start: the first step; to resume, the number of completed steps.
        steps: number of batches; None: endless.
    """
    end = np.iinfo(np.int64).max if steps is None else start + steps
    arrays = tf.nest.map_structure(tf.convert_to_tensor, (inputs, label_array(labels)))

    def batch(step: tf.Tensor) -> Any:
        rows = sample(step)
        return tf.nest.map_structure(lambda array: tf.gather(array, rows), arrays)

    drawn = tf.data.Dataset.range(start, end).map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    return drawn.prefetch(tf.data.AUTOTUNE)
