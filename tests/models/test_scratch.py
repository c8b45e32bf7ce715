"""Networks to train from scratch."""

import numpy as np
import pytest
import tensorflow as tf

from models.backbones import scratch

v1 = tf.compat.v1


@pytest.mark.parametrize(
    ("network", "width"),
    [(scratch.resnet18, 512), (scratch.mobilenet, 1024), (scratch.convnet, 4 * 4 * 128)],
)
def test_features_have_one_row_per_image_and_every_weight_matters(network, width):
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(3)
        pixels = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
        features = network(tf.constant(pixels), True)
        gradients = v1.gradients(tf.reduce_sum(features**2), v1.trainable_variables())
        session.run(v1.global_variables_initializer())
        found, slopes = session.run([features, gradients])
    assert found.shape == (2, width) and np.isfinite(found).all()
    assert not np.allclose(found[0], found[1])
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_the_width_factor_scales_mobilenet():
    with tf.Graph().as_default():
        assert scratch.mobilenet(tf.zeros([1, 32, 32, 3]), False, width=0.25).shape == (1, 256)
