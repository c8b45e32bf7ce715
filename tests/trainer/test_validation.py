"""Validation passes: means over examples, on shared weights."""

import numpy as np
import pytest
import tensorflow as tf
import toy

from trainer import layers, towers
from trainer.config import UserError
from trainer.validation import Validation

v1 = tf.compat.v1


class Mean:
    """The loss is the mean of the batch; the variable scales it."""

    __name__ = "mean"

    @staticmethod
    def build(inputs, train_phase):
        scale = v1.get_variable("scale", [], initializer=v1.constant_initializer(2.0))
        return layers.ModelDict(loss=scale * tf.reduce_mean(inputs["x"]), x=inputs["x"])

    @staticmethod
    def metrics(outputs):
        return {"largest": outputs["x"].max(), "rows": len(outputs["x"])}


def validated(data, **options):
    with tf.Graph().as_default(), v1.Session() as session:
        batch = {"x": tf.zeros([2])}
        towers.replicate(Mean.build, batch, ["/cpu:0"], train_phase=True, step=0)
        validation = Validation(Mean, data(), ["/cpu:0"], None, **options)
        session.run(v1.global_variables_initializer())
        validation.start(session)
        batches = [validation.batch()["loss"] for _ in range(3)]
        return batches, validation.full(session), validation.full(session)


def test_means_are_over_examples_and_batches_repeat():
    def data():
        return tf.data.Dataset.from_tensor_slices({"x": [1.0, 2.0, 6.0]}).batch(2)

    batches, full, again = validated(data)
    assert batches == [3.0, 12.0, 3.0]
    assert full == again == {"loss": 6.0, "largest": 6.0, "rows": 3.0, "examples": 3.0}
    assert validated(data, batches_done=5)[0] == [12.0, 3.0, 12.0]


def test_an_empty_split_is_named():
    def validated_once(session, rows):
        towers.replicate(Mean.build, {"x": tf.zeros([2])}, ["/cpu:0"], train_phase=True, step=0)
        data = tf.data.Dataset.from_tensor_slices({"x": np.zeros([rows], np.float32)}).batch(2)
        validation = Validation(Mean, data, ["/cpu:0"], None)
        session.run(v1.global_variables_initializer())
        validation.start(session)
        return validation.full(session)

    refused = pytest.raises(UserError, match=r"datasets\(\)\['vld'\] is empty")
    with tf.Graph().as_default(), v1.Session() as session, refused:
        validated_once(session, 0)


def test_validation_leaves_the_weights_alone(train):
    a = train("a", keys={"trainer.validation_step_interval": 0})
    b = train("b", keys={"trainer.validation_step_interval": 1, "trainer.evaluation_interval": 5})
    reader_a, reader_b = (tf.train.load_checkpoint(f"{f}/checkpoint/model-20") for f in (a, b))
    for name in reader_a.get_variable_to_shape_map():
        np.testing.assert_array_equal(reader_a.get_tensor(name), reader_b.get_tensor(name))
    assert toy.config["trainer.evaluation_interval"] == 5
