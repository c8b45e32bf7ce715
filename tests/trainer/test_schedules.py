"""Learning rates against plain formulas."""

import math

import numpy as np
import pytest
import tensorflow as tf

from trainer import schedules
from trainer.config import Config, UserError

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
N = 100


def rates(steps, **options):
    config = Config({"model.num_steps": N})
    config.update({f"model.lr_schedule.{k.replace('__', '.')}": v for k, v in options.items()})
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.placeholder(tf.int64, [])
        rate = schedules.create(config, step)
        return [session.run(rate, {step: s}) for s in steps]


def halves(step):
    return 0.5 ** tf.cast(step, tf.float32)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"method": "constant", "constant__value": 0.3}, lambda s: 0.3),
        (
            {
                "method": "step",
                "step__boundaries": [10, 50],
                "step__values": [1.0, 0.1, 0.01],
            },
            lambda s: 1.0 if s < 10 else 0.1 if s < 50 else 0.01,
        ),
        ({"method": "step", "step__values": [0.7]}, lambda s: 0.7),
        (
            {"method": "exp", "exp__value": 2.0, "exp__decay_rate": 0.5, "exp__decay_steps": 10.0},
            lambda s: 2 * 0.5 ** (s // 10),
        ),
        (
            {"method": "exp", "exp__decay_rate": 0.5, "exp__staircase": False},
            lambda s: 0.01 * 0.5 ** (s / 1000),
        ),
        (
            {"method": "cosine", "cosine__value": 1.0, "cosine__end_value": 0.1},
            lambda s: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(s, N) / N)),
        ),
        (
            {"method": "polynomial", "polynomial__value": 1.0, "polynomial__power": 2.0},
            lambda s: (1 - min(s, N) / N) ** 2,
        ),
        ({"method": "custom", "custom__fn": halves}, lambda s: 0.5**s),
        ({"method": "constant", "warmup_steps": 4}, lambda s: 0.01 * min((s + 1) / 4, 1)),
    ],
)
def test_schedule(options, expected):
    steps = [0, 1, 3, 9, 10, 49, 50, 99, 100, 150]
    expected = [expected(s) for s in steps]
    np.testing.assert_allclose(rates(steps, **options), expected, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "step", "step__boundaries": [1], "step__values": [0.1]}, "one entry more"),
        ({"method": "step", "step__boundaries": [2, 1], "step__values": [1.0] * 3}, "must rise"),
        ({"method": "custom"}, "needs model.lr_schedule.custom.fn"),
        ({"method": "custom", "custom__fn": lambda s: tf.zeros([2])}, "not a scalar"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        rates([0], **options)
