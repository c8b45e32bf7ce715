"""`--check_towers`: compares loss and gradients on N towers with those on one."""

from types import ModuleType

import numpy as np
import tensorflow as tf

from trainer import layers, towers
from trainer.config import Config, UserError, seed_of
from trainer.data import check_batch, data_errors, load_datasets

v1 = tf.compat.v1

TOLERANCE = 1e-4  # of each gradient's largest entry; float32 sums in another order differ by 1e-6


def check_towers(model: ModuleType, config: Config) -> list[str]:
    """Compares one real batch's loss and gradients between one tower and several.

    The initial weights are used. Batch norm in a tower uses only its slice of the batch, so
    `trainer.layers.batch_norm` is frozen for the comparison.

    Args:
      model: the model module.
      config: its `Config`; `trainer.num_towers` sets the number of towers, at least 2.

    Returns:
      Lines of text: the comparison, the variable that differs most, the verdict.

    Raises:
      UserError: they differ by more than TOLERANCE.
    """
    count = max(len(towers.devices(config["trainer.num_towers"])), 2)
    with tf.Graph().as_default(), v1.Session() as session, data_errors():
        datasets, _ = load_datasets(model, v1.placeholder_with_default(np.int64(0), []))
        iterator = v1.data.make_initializable_iterator(datasets["trn"])
        inputs = iterator.get_next("next_batch")
        check_batch(inputs, config)
        session.run([iterator.initializer, v1.tables_initializer()])
        batch = session.run(inputs)
        types = {name: tensor.dtype for name, tensor in inputs.items()}
    lines = []
    updates = _run(model, config, batch, types, 1)[2]
    if updates:
        lines.append(
            f"the model has {updates} batch statistics, which depend on each tower's slice: "
            "compared with batch norm frozen (in training, N towers differ from one by this)"
        )
    with layers.frozen_batch_norm():
        (one, grads_one, left), (many, grads_many, _) = (
            _run(model, config, batch, types, n) for n in (1, count)
        )
    if left:
        lines.append(f"{left} updates are not from trainer.layers.batch_norm and are not frozen")
    errors = {
        name: np.abs(grads_many[name] - g).max() / max(np.abs(g).max(), 1e-12)
        for name, g in grads_one.items()
    }
    errors["loss"] = abs(many - one) / max(abs(one), 1e-12)
    worst = max(errors, key=errors.get)
    lines.append(f"loss {one:.7g} on 1 tower, {many:.7g} on {count}")
    lines.append(f"worst of {len(errors)}: {worst}, relative difference {errors[worst]:.2g}")
    if not errors[worst] <= TOLERANCE:
        raise UserError(
            f"{count} towers do not train like one: {'; '.join(lines)}. Find the code in build() "
            "that mixes examples of a batch; move it to loss(outputs), which sees the whole batch."
        )
    return [*lines, f"{count} towers train like one"]


def _run(model, config, batch, types, count):
    """Returns (loss, {variable: gradient}, number of batch-norm updates) on `count` towers."""
    devices = towers.devices(count)
    with tf.Graph().as_default():
        v1.set_random_seed(seed_of(config["trainer.random_seed"]))
        inputs = {
            name: v1.placeholder(types[name], value.shape, name=f"batch/{name}")
            for name, value in batch.items()
        }
        step = v1.train.create_global_step()
        replicas = towers.replicate(model.build, inputs, devices, train_phase=True, step=step)
        loss, _ = towers.loss_of(model, replicas, towers.gather(replicas))
        trained = towers.select(v1.trainable_variables(), config, "model.trainable_variables")
        pairs = towers.gradients(model, replicas, loss, trained, devices)
        fetches = loss, {v.op.name: tf.convert_to_tensor(g) for g, v in pairs}
        with v1.Session(config=towers.session_config(config, devices)) as session:
            session.run([v1.global_variables_initializer(), v1.tables_initializer()])
            feed = {inputs[name]: value for name, value in batch.items()}
            values = session.run(fetches, feed)
        return (*values, len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)))
