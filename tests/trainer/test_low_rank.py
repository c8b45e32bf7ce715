"""Low-rank updates of Keras layers, merged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import keras_model, low_rank, towers

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1


def test_low_rank_updates_are_merged_into_plain_kernels():
    def adapted():
        keras.utils.set_random_seed(4)
        images = keras.Input((6,))
        x = keras.layers.Dense(5, activation="relu")(images)
        x = keras.layers.EinsumDense("bi,ihk->bhk", (2, 4))(x)
        model = keras.Model(images, x)
        for layer in model.layers[1:]:
            layer.enable_lora(2, lora_alpha=3)
            layer.lora_kernel_b.assign(np.random.normal(size=layer.lora_kernel_b.shape))
        return model

    model = keras_model.eagerly(adapted)
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("net"):
            whole = keras_model.apply(model, tf.ones([3, 6]))
        names = {v.op.name for v in v1.global_variables()}
        count = len(towers.ancestors([whole]))
        session.run(v1.global_variables_initializer())
        expected, values = session.run([whole, {v.op.name: v for v in v1.global_variables()}])
    with tf.Graph().as_default(), v1.Session() as session:
        with low_rank.merging() as updates, v1.variable_scope("net"):
            merged = keras_model.apply(model, tf.ones([3, 6]))
        assert names - {v.op.name for v in v1.global_variables()} == {
            name for update in updates for name in (update.a, update.b)
        }
        assert len(updates) == 2 and all(update.scale == 1.5 for update in updates)
        # A product, a scale and a sum for each kernel, and what reads two variables.
        assert len(towers.ancestors([merged])) <= count - 2 * 5
        session.run(v1.global_variables_initializer())
        for kernel, a, b, scale in updates:
            kernel.load(session.run(kernel) + scale * (values[a] @ values[b]), session)
        # Sums of at most 30 products in another order.
        np.testing.assert_allclose(session.run(merged), expected, rtol=0, atol=1e-4)
