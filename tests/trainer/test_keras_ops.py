"""Random numbers and grouped convolutions of Keras's layers in graphs of ours."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from odd_layers import DropPath

from trainer import keras_model, keras_ops, layers

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1


@pytest.mark.parametrize("dropped", ("drop", "path"))
def test_random_layers_drop_their_share_and_differ_between_examples(dropped):
    def layer():
        images = keras.Input((64,))
        return keras.Model(
            images, (keras.layers.Dropout(0.5) if dropped == "drop" else DropPath())(images)
        )

    model = keras_model.eagerly(layer)
    with (
        tf.Graph().as_default(),
        v1.Session() as session,
        layers.replica(1, tf.constant(5, tf.int64), tf.zeros([], tf.int64)),
    ):
        found = session.run(without_weights(model, tf.ones([256, 64])))
    kept = found > 0
    np.testing.assert_array_equal(found[kept], 2.0)
    rows = kept.mean(1)
    count = kept.size if dropped == "drop" else len(rows)
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / count**0.5  # five deviations of the mean
    assert set(np.unique(rows)) == {0, 1} if dropped == "path" else 0 < rows.min() <= rows.max() < 1


def without_weights(model, x):
    with (
        keras_ops.replaced(256),
        keras.StatelessScope(
            [(v, keras_ops.key(v)) for v in model.non_trainable_variables],
            initialize_variables=False,
        ),
    ):
        return model(x, training=True)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 4, "filters": 8},
        {"groups": 2, "filters": 6, "strides": 2, "padding": "same"},
        {"groups": 4, "filters": 4, "dilation_rate": 2},
    ],
    ids=str,
)
def test_grouped_convolutions_equal_those_of_keras(options):
    def layer():
        keras.utils.set_random_seed(2)
        made = keras.layers.Conv2D(kernel_size=3, **options)
        return made, made(x).numpy()

    x = np.random.default_rng(1).normal(size=(2, 9, 9, 4)).astype(np.float32)
    made, expected = keras_model.eagerly(layer)
    with (
        tf.Graph().as_default(),
        v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as session,
    ):
        # As a second tower has it: operations on its device, variables on the first.
        with v1.device(lambda op: f"/device:CPU:{int(op.type != 'VarHandleOp')}"):
            found = keras_model.apply(made, tf.constant(x))
        session.run(v1.global_variables_initializer())
        # Within what the order of float32 sums over some ten terms can change.
        scale = np.abs(expected).max()
        np.testing.assert_allclose(session.run(found), expected, rtol=0, atol=1e-5 * scale)


def test_layers_are_written_as_tensorflow_fuses_them():
    """Batch norm of maps is one operation; the exact GELU and a dense layer are of a known form."""

    def network():
        keras.utils.set_random_seed(5)
        images = keras.Input((6, 6, 3))
        x = keras.layers.Conv2D(4, 3)(images)
        x = keras.layers.BatchNormalization(scale=False, momentum=0.7)(x)
        x = keras.layers.BatchNormalization(center=False, epsilon=0.01)(keras.ops.relu(x))
        x = keras.layers.Dense(5, activation=lambda x: keras.ops.gelu(x, approximate=False))(x)
        model = keras.Model(images, keras.layers.Dense(2)(x))
        before = [v.numpy() for v in model.variables]
        served, trained = model(x_of, training=False).numpy(), model(x_of, training=True).numpy()
        moved = {v.path: v.numpy() for v in model.variables if "moving" in v.path}
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        return model, served, trained, list(moved.values())

    x_of = np.random.default_rng(3).normal(1, 2, (3, 6, 6, 3)).astype(np.float32)
    model, *expected = keras_model.eagerly(network)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        served = keras_model.apply(model, tf.constant(x_of))
        types = [op.type for op in graph.get_operations()]
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            trained = keras_model.apply(model, tf.constant(x_of), True)
        session.run(v1.global_variables_initializer())
        found = session.run([served, trained])
        session.run(v1.get_collection(v1.GraphKeys.UPDATE_OPS))
        moved = [session.run(v) for v in v1.global_variables() if "moving" in v.op.name]
    assert types.count("FusedBatchNormV3") == 2 and "Rsqrt" not in types
    assert types.count("Erf") == 1 and "Erfc" not in types and types.count("MatMul") == 2
    for ours, theirs in zip([*found, *moved], [*expected[:2], *expected[2]], strict=True):
        # Within what the order of float32 sums over a hundred terms can change.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
