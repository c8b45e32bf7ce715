"""Inspection: what it says equals what the trainer does."""

import numpy as np
import pytest
import tensorflow as tf
import toy

from trainer import checkpoints, inspect
from trainer.config import UserError

v1 = tf.compat.v1


def test_variables_are_those_that_a_run_trains_and_saves(train, config):
    config.update(
        {
            "toy.norm": "batch",
            "model.weight_decay": 0.5,
            "model.trainable_variables.filter_regex": "kernel|gamma",
            "model.optimizer.method": "sgd",
            "model.num_steps": 0,
        }
    )
    found = inspect.inspect(toy, config)
    before = train()
    prefix = checkpoints.latest(f"{before}/checkpoint")
    start = tf.train.load_checkpoint(prefix)
    shapes = checkpoints.shapes(prefix)
    rows = {row["name"]: row for row in found["variables"]}
    assert set(rows) == set(shapes) - {"global_step"}
    assert all(row["shape"] == shapes[name] for name, row in rows.items())
    assert rows["hidden/kernel"]["parameters"] == 4 * 8

    after = tf.train.load_checkpoint(
        checkpoints.latest(train("after", keys={"model.num_steps": 1}) + "/checkpoint")
    )
    for name, row in rows.items():
        if "moving" in name:  # batch statistics move without being trained
            assert not row["trained"]
        else:
            changed = not np.array_equal(start.get_tensor(name), after.get_tensor(name))
            assert row["trained"] == changed, name
    assert [n for n, row in rows.items() if row["decayed"]] == ["hidden/kernel", "out/kernel"]


def test_flops_of_the_toy_are_those_of_its_two_layers(config):
    found = inspect.inspect(toy, config)
    flops = {row["name"]: row["flops"] for row in found["variables"] if row["flops"]}
    assert flops == {"hidden/kernel": 2 * 4 * 8, "out/kernel": 2 * 8 * 1}
    assert found["flops"] == 2 * (4 * 8 + 8) and found["uncounted"] == []


def variable(name, *shape):
    return v1.get_variable(name, shape)


def conv(x):
    return tf.nn.conv2d(x, variable("k", 3, 3, 6, 8), 2, "SAME")


def grouped(x):
    return tf.nn.conv2d(x, variable("k", 3, 3, 2, 9), 1, "VALID")


def depthwise(x):
    return tf.nn.depthwise_conv2d(x, variable("k", 5, 5, 6, 2), [1, 1, 1, 1], "SAME")


def transposed(x):
    return tf.nn.conv2d_transpose(x, variable("k", 3, 3, 4, 6), [1, 20, 24, 4], 2)


def dense(x):
    return tf.matmul(tf.reshape(x, [1, -1]), variable("k", 10 * 12 * 6, 7))


def turned(x):
    cast = tf.cast(variable("k", 7, 10 * 12 * 6), tf.bfloat16)
    return tf.matmul(cast, tf.cast(tf.reshape(x, [1, -1]), tf.bfloat16), transpose_b=True)


def attention(x):
    x = tf.reshape(x, [1, 120, 6])
    return tf.matmul(x, x, transpose_b=True)


def contracted(x):
    return tf.einsum("bhwc,cd->bhwd", x, variable("k", 6, 11))


@pytest.mark.parametrize(
    "layer, key, count",
    [
        # outputs * inputs of each, times 2
        (conv, "k", 2 * (5 * 6 * 8) * (3 * 3 * 6)),
        (grouped, "k", 2 * (8 * 10 * 9) * (3 * 3 * 2)),
        (depthwise, "k", 2 * (10 * 12 * 12) * (5 * 5)),
        (transposed, "k", 2 * (10 * 12 * 6) * (3 * 3 * 4)),
        (dense, "k", 2 * 7 * 720),
        (turned, "k", 2 * 7 * 720),
        (attention, "", 2 * 120 * 120 * 6),
        (contracted, "k", 2 * 10 * 12 * 6 * 11),
    ],
)
def test_products_are_counted(layer, key, count):
    with tf.Graph().as_default():
        y = layer(v1.placeholder(tf.float32, [1, 10, 12, 6]))
        assert inspect.count_flops([y]) == ({key: count}, [])


def test_what_cannot_be_counted_is_named():
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, 4])
        y = tf.matmul(x, variable("k", 4, 2), name="free")
        y = tf.function(lambda t: tf.matmul(t, t, transpose_a=True))(y)
        flops, uncounted = inspect.count_flops([y])
        assert flops == {} and len(uncounted) == 2 and uncounted[1] == "free"


def test_a_filter_that_chooses_nothing_is_refused_as_in_training(config):
    config["model.trainable_variables.filter_regex"] = "kernle"
    with pytest.raises(UserError, match="model.trainable_variables.filter_fn"):
        inspect.inspect(toy, config)


def test_the_program_prints_a_table(program):
    code, out, err = program(
        "trainer.inspect", "--model=toy", "--trainer.num_towers=2", "--model.weight_decay=0.1"
    )
    assert code == 0 and err == ""
    (row,) = (line for line in out.splitlines() if "hidden/kernel" in line)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["hidden/kernel", "4 x 8", "32"]
    assert "Towers: 2, 8 of 16 examples on each: /device:CPU:0, /device:CPU:1" in out
    assert inspect.COUNTED in out
