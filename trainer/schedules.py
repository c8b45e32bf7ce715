"""Learning rate schedules by name, from configuration."""

import math

import tensorflow as tf

from trainer.config import Config, UserError

v1 = tf.compat.v1


def create(config: Config, step: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate of the next update, a float32 scalar tensor.

    Args:
      config: a `Config`.
      step: int64 scalar tensor of completed updates.

    Raises:
      UserError: the schedule's options are inconsistent.
    """
    method = config["model.lr_schedule.method"]
    option = lambda name: config[f"model.lr_schedule.{method}.{name}"]  # noqa: E731
    num_steps = config["model.num_steps"]
    if method == "constant":
        rate = tf.constant(option("value"))
    elif method == "step":
        boundaries, values = option("boundaries"), option("values")
        if len(values) != len(boundaries) + 1 or boundaries != sorted(boundaries):
            raise UserError(
                "model.lr_schedule.step: values needs one entry more than boundaries, and "
                f"boundaries must rise; got {len(values)} values, boundaries {boundaries}."
            )
        # Value i+1 applies after boundaries[i] completed updates.
        rate = (
            tf.gather(tf.constant(values), tf.reduce_sum(tf.cast(step >= boundaries, tf.int32)))
            if boundaries
            else tf.constant(values[0])
        )
    elif method == "exp":
        rate = v1.train.exponential_decay(
            option("value"), step, option("decay_steps"), option("decay_rate"), option("staircase")
        )
    elif method == "cosine":
        end = option("end_value")
        done = tf.minimum(tf.cast(step, tf.float32) / num_steps, 1.0)
        rate = end + (option("value") - end) * 0.5 * (1 + tf.cos(math.pi * done))
    elif method == "polynomial":
        rate = v1.train.polynomial_decay(
            option("value"), step, num_steps, option("end_value"), option("power")
        )
    else:
        fn = option("fn")
        if fn is None:
            raise UserError(
                "model.lr_schedule.method=custom needs model.lr_schedule.custom.fn, "
                "a function or 'package.module:function'."
            )
        rate = tf.cast(fn(step), tf.float32)
        if rate.shape.rank != 0:
            raise UserError(
                f"model.lr_schedule.custom.fn returned shape {rate.shape}, not a scalar."
            )
    warmup = config["model.lr_schedule.warmup_steps"]
    if warmup:
        # Step 0 uses 1 / warmup of the rate, not 0.
        rate *= tf.minimum(tf.cast(step + 1, tf.float32) / warmup, 1.0)
    return rate
