"""Validation: single batches, and full passes that also compute the model's metrics."""

from types import ModuleType

import numpy as np
import tensorflow as tf

from trainer import towers
from trainer.config import UserError

v1 = tf.compat.v1


class Validation:
    """The evaluation sub-graph of a model: shared variables, `train_phase=False`, separate batches.

    Args:
      model: the model module.
      dataset: `datasets()["vld"]`: batches, finite for full passes.
      tower_devices: device names.
      averages: moving averages to use instead of the variables, or None.
      batches_done: number of single batches before a resume; the next batch follows them.
    """

    def __init__(
        self,
        model: ModuleType,
        dataset: tf.data.Dataset,
        tower_devices: list[str],
        averages: v1.train.ExponentialMovingAverage | None,
        batches_done: int = 0,
    ):
        self._metrics = getattr(model, "metrics", None)
        length = dataset.cardinality()
        self._once = v1.data.make_initializable_iterator(dataset.prefetch(2))
        # If the length is known, at most one pass is skipped.
        skip = tf.where(length > 0, batches_done % tf.maximum(length, 1), batches_done)
        self._endless = v1.data.make_initializable_iterator(dataset.repeat().skip(skip).prefetch(1))
        handle = v1.placeholder(tf.string, [])
        self._handle = handle
        inputs = v1.data.Iterator.from_string_handle(
            handle, v1.data.get_output_types(dataset), v1.data.get_output_shapes(dataset)
        ).get_next("next_batch")
        replicas = towers.replicate(
            model.build, inputs, tower_devices, train_phase=False, averages=averages
        )
        outputs = towers.gather(replicas)
        with towers.keep_collections():
            loss, scalars = towers.loss_of(model, replicas, outputs)
        self._values = {"loss": loss, **scalars}
        self._size = tf.shape(next(iter(inputs.values())))[0]
        # Exclude images and feature maps, which would not fit into memory for a whole pass.
        self._outputs = {
            name: tensor
            for name, tensor in {**inputs, **outputs}.items()
            if tf.is_tensor(tensor) and tensor.shape.rank in (1, 2)
        }
        self._strings = [self._once.string_handle(), self._endless.string_handle()]

    def start(self, session: v1.Session) -> None:
        """Prepares the iterators; call it once, first."""
        session.run(self._endless.initializer)
        self._once_handle, self._endless_handle = session.run(self._strings)
        self._run = session.make_callable(self._values, [self._handle])
        self._run_full = session.make_callable(
            [self._values, self._size, self._outputs], [self._handle]
        )

    def batch(self) -> dict[str, float]:
        """Returns {name: float} of the next batch: loss and every scalar output."""
        return self._run(self._endless_handle)

    def full(self, session: v1.Session) -> dict[str, float]:
        """Returns {name: float} over one full pass.

        Losses are means over examples, and `examples` is their number. The model's
        `metrics(outputs)` gets the joined NumPy outputs of all batches; its results are added.

        Raises:
          UserError: the split is empty.
        """
        session.run(self._once.initializer)
        values, sizes, outputs = [], [], []
        try:
            while True:
                v, n, o = self._run_full(self._once_handle)
                values.append(v), sizes.append(n), outputs.append(o)
        except tf.errors.OutOfRangeError:
            pass
        if not sizes:
            raise UserError("datasets()['vld'] is empty: there is nothing to validate on.")
        means = {
            name: float(np.average([v[name] for v in values], weights=sizes)) for name in values[0]
        }
        if self._metrics:
            joined = {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}
            means |= {name: float(value) for name, value in self._metrics(joined).items()}
        return means | {"examples": float(sum(sizes))}
