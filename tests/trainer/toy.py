"""A model small enough for tests: regression on random numbers, every trainer feature reachable."""

import builtins

import numpy as np
import tensorflow as tf

from trainer import layers
from trainer.config import Config

v1 = tf.compat.v1

config = Config(
    {
        "trainer.experiment_name": "toy",
        "trainer.print_interval": 1,
        "trainer.validation_step_interval": 5,
        "model.batch_size": 16,
        "model.num_steps": 20,
        "model.lr_schedule.constant.value": 0.02,
    }
)
config.declare("toy.dropout", 0.2, "Share of hidden units to drop.")
config.declare("toy.norm", "none", "Normalisation.", choices=("none", "batch"))
config.declare("toy.nan_at", -1, "Batch number whose input is not finite.")
config.declare("toy.bad_at", -1, "Batch number whose input cannot be read.")
config.declare("toy.seconds", 0.0, "Seconds that each batch takes to read.")
config.declare("toy.raise_at", -1, "Batch number at which build's Python code raises an error.")
config.declare("toy.raises", "RuntimeError", "Name of that error.")


def _batch(number):
    seed = tf.stack([tf.constant(1, tf.int64), number])
    x = tf.random.stateless_normal([config["model.batch_size"], 4], seed)
    x = tf.where(tf.equal(number, config["toy.nan_at"]), np.nan, x)
    if config["toy.bad_at"] >= 0:
        message = "cannot read image 'shelf/42.jpg' (truncated): mend or remove it"
        with tf.control_dependencies(
            [v1.assert_none_equal(number, np.int64(config["toy.bad_at"]), message=message)]
        ):
            x = tf.identity(x)
    if config["toy.seconds"]:
        x = tf.numpy_function(_wait, [x], tf.float32)
        x.set_shape([config["model.batch_size"], 4])
    ids = tf.strings.join(
        [tf.strings.as_string(number), tf.strings.as_string(tf.range(tf.shape(x)[0]))], "/"
    )
    return {"x": x, "y": tf.reduce_sum(x, 1), "id": ids}


def _wait(x):
    import time

    time.sleep(config["toy.seconds"])
    return x


def _raise(x, batch_id):
    if int(batch_id.split(b"/")[0]) == config["toy.raise_at"]:
        raise getattr(builtins, config["toy.raises"])("in the model")
    return x


def is_kernel(variable):
    return "kernel" in variable.op.name


def datasets(start_step=0, part=(0, 1)):
    size = config["model.batch_size"] // part[1]

    def own(number):
        return {name: rows[part[0] * size :][:size] for name, rows in _batch(number).items()}

    every = tf.data.Dataset.range(start_step, 1 << 40)
    return {
        "trn": every.map(own if part[1] > 1 else _batch),
        "vld": tf.data.Dataset.range(1 << 30, (1 << 30) + 3).map(_batch),
    }


def build(inputs=None, train_phase=False):
    m = layers.ModelDict()
    x = inputs["x"]
    if config["toy.raise_at"] >= 0:
        x = tf.ensure_shape(tf.numpy_function(_raise, [x, inputs["id"][0]], tf.float32), x.shape)
    m.hidden = layers.dense(x, 8, "hidden")
    if config["toy.norm"] == "batch":
        m.hidden = layers.batch_norm(m.hidden[:, None, None], train_phase, "norm")[:, 0, 0]
    m.hidden = layers.dropout(tf.nn.relu(m.hidden), config["toy.dropout"], train_phase)
    m.prediction = layers.dense(m.hidden, 1, "out")[:, 0]
    m.target = inputs["y"]
    v1.summary.scalar("toy/hidden", tf.reduce_mean(m.hidden))
    m.loss = tf.reduce_mean(tf.square(m.prediction - inputs["y"]))
    return m


def metrics(outputs):
    return {"mean_error": np.mean(np.abs(outputs["prediction"] - outputs["target"]))}
