"""Keras models in graphs: equal to themselves, over shared variables, however a batch is split."""

import gc
import os
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from odd_layers import Constant, DropPath

from trainer import checkpoints, keras_model, layers, towers
from trainer.config import UserError

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
SESSION = v1.ConfigProto(device_count={"CPU": 2})


class NotTheFirst(keras.layers.Layer):
    """Compares tensors by their values."""

    def call(self, x):
        return x * keras.ops.cast(x != x[:, :1], x.dtype)


def network(norm=True, drop=True, path=True):
    """Preprocessing, convolutions in 3 and 2 groups, batch norm, dropout and drop path."""
    keras.utils.set_random_seed(1)
    conv, dense = keras.layers.Conv2D, keras.layers.Dense
    x = images = keras.Input((None, None, 3))
    x = keras.layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    x = conv(6, 3, padding="same", groups=3, bias_initializer="random_normal")(x)
    x = conv(8, 3, strides=2, groups=2, name="stem")(x)
    if norm:
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.ops.gelu(x))
    x = keras.layers.Dropout(0.4)(x) if drop else x
    x = dense(8)(x)
    x = NotTheFirst()(DropPath()(x) if path else x)
    return keras.Model(images, dense(5)(x))


def make(**options):
    return keras_model.eagerly(network, **options)


def build(model, count, train, step=0):
    """Features of `count` towers, joined."""

    def tower(inputs, train_phase):
        return {"features": keras_model.apply(model, inputs["images"], train_phase)}

    devices = [f"/device:CPU:{i}" for i in range(count)]
    inputs = {"images": tf.constant(IMAGES)}
    step = tf.constant(step, tf.int64)
    built = towers.replicate(tower, inputs, devices, train_phase=train, seed=3, step=step)
    return tf.concat([t["features"] for t in built], 0)


def trained(model, count, step=0):
    """Features in training and the gradients of their square, on `count` towers."""
    with tf.Graph().as_default(), v1.Session(config=SESSION) as session, layers.frozen_batch_norm():
        features = build(model, count, True, step)
        variables = v1.trainable_variables()
        loss = tf.reduce_mean(tf.square(features))
        gradients = v1.gradients(loss, variables, colocate_gradients_with_ops=True)
        names = [v.op.name for v in variables]
        session.run(v1.global_variables_initializer())
        found, slopes = session.run([features, gradients])
        return found, dict(zip(names, slopes, strict=True))


def close(found, expected):
    """Within what the order of float32 sums over some hundred terms can change."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_a_model_equals_its_eager_self_and_its_variables_are_ours(tmp_path):
    def reference():
        model = network()
        eager = model(IMAGES, training=False).numpy()
        state = model.stateless_call(
            [v.numpy() for v in model.trainable_variables],
            [v.numpy() for v in model.non_trainable_variables],
            IMAGES,
            training=True,
        )[1]
        moved = {
            v.path.split("/")[-1]: np.asarray(new)
            for v, new in zip(model.non_trainable_variables, state, strict=True)
        }
        return eager, moved, sum(v.trainable for v in model.weights)

    eager, moved, count = keras_model.eagerly(reference)
    make(path=False)  # another model first: the numbers that Keras gives must not matter
    model = make()
    with tf.Graph().as_default(), v1.Session(config=SESSION) as session:
        build(model, 2, True)
        served = build(model, 2, False)
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        variables = v1.global_variables()
        names = {v.op.name for v in variables}
        assert names == {
            *(f"{layer}/{kind}" for layer in ("conv2d", "stem", "dense", "dense_1") for kind in
              ("kernel", "bias")),
            *("batch_normalization/gamma", "batch_normalization/beta"),
            *("batch_normalization/moving_mean", "batch_normalization/moving_variance"),
        }  # fmt: skip
        assert len(v1.trainable_variables()) == count == 10
        assert len(updates) == 2
        session.run(v1.global_variables_initializer())
        close(session.run(served), eager)
        (tmp_path / "checkpoint").mkdir()
        writer = checkpoints.Writer(session, variables, str(tmp_path / "checkpoint"), 1)
        kernel = next(v for v in variables if v.op.name == "stem/kernel")
        session.run(kernel.assign_add(tf.ones(kernel.shape)))
        writer.save(1, wait=True)
        changed = session.run(served)
    assert np.abs(changed - eager).max() > 1e-3
    with tf.Graph().as_default(), v1.Session() as session:
        served = keras_model.apply(model, tf.constant(IMAGES))
        prefix = checkpoints.latest(str(tmp_path / "checkpoint"))
        checkpoints.restore(session, prefix, v1.global_variables())
        close(session.run(served), changed)
    # One tower sees the batch as Keras did: the averages move as Keras moves them.
    with tf.Graph().as_default(), v1.Session() as session:
        build(model, 1, True)
        session.run(v1.global_variables_initializer())
        session.run(v1.get_collection(v1.GraphKeys.UPDATE_OPS))
        for v in v1.global_variables():
            if "moving" in v.op.name:
                close(session.run(v), moved[v.op.name.split("/")[-1]])


def test_two_towers_train_as_one_and_each_step_draws_anew():
    model = make()
    (one, slopes), (two, slopes_of_two) = (trained(model, count) for count in (1, 2))
    close(two, one)
    for name, slope in slopes.items():
        np.testing.assert_allclose(
            slopes_of_two[name], slope, rtol=0, atol=1e-5 * max(np.abs(slope).max(), 1e-3)
        )
    assert np.abs(trained(model, 1, step=1)[0] - one).max() > 1e-3
    assert np.unique(one, axis=0).shape[0] > 1


def test_batch_norm_by_its_averages_in_training():
    model = make(drop=False, path=False)
    with tf.Graph().as_default(), v1.Session() as session:
        with layers.replica(1, tf.constant(0, tf.int64), tf.zeros([], tf.int64)):
            train = keras_model.apply(model, tf.constant(IMAGES), True, frozen_batch_norm=True)
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            served = keras_model.apply(model, tf.constant(IMAGES))
        assert not v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        assert any("gamma" in v.op.name for v in v1.trainable_variables())
        session.run(v1.global_variables_initializer())
        np.testing.assert_array_equal(*session.run([train, served]))


def test_the_weights_leave_the_model_and_their_file_goes_with_it():
    model = make()
    folder = os.path.dirname(keras_model.take(model).prefix)
    variable = model.variables[0]
    with pytest.raises(ValueError, match="weights are in a graph"):
        keras_model.eagerly(variable.numpy)
    assert os.path.isdir(folder)
    gone = weakref.ref(model)
    del model, variable
    gc.collect()
    assert gone() is None and not os.path.exists(folder)


def two_inputs():
    a, b = keras.Input((3,)), keras.Input((3,))
    return keras.Model([a, b], keras.layers.Dense(2)(a + b))


def constant():
    images = keras.Input((3,))
    return keras.Model(images, Constant()(images), name="odd")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(2)]), "has no weights yet: give it an Input"),
        (two_inputs, "has 2 inputs; it must take images alone"),
        (constant, "odd: a layer keeps a tensor that was made outside of the graph"),
    ],
)
def test_a_model_that_will_not_do(make, message):
    model = keras_model.eagerly(make)
    with tf.Graph().as_default(), pytest.raises(UserError, match=message) as caught:
        keras_model.apply(model, tf.ones([2, 3]))
    assert "\n" not in str(caught.value)


def test_a_model_made_within_a_graph_is_refused():
    with tf.Graph().as_default():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        with pytest.raises(UserError, match="made within a graph: make it by trainer.keras_mod"):
            keras_model.apply(model, tf.ones([2, 3]))
