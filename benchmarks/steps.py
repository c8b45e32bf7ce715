"""Graphs whose steps several benchmarks time: a training step, and batch-hard beside a product."""

import contextlib

import numpy as np
import tensorflow as tf

import metriclearn
from trainer import inspect, layers, optimizers, towers

v1 = tf.compat.v1


@contextlib.contextmanager
def training(network, config, size, batch, inputs=None, tower_devices=None):
    """Yields (a function that makes one training step, its floating-point operations).

    Args:
      network: (pixels, train_phase) -> features.
      config: the `trainer.Config` with precision, XLA and threads.
      size: pixels, height and width.
      batch: images over all towers, four per product.
      inputs: a function that makes {'image', 'label'}; by default constants on the device.
      tower_devices: default: those of `config`.
    """

    class Model:
        @staticmethod
        def build(inputs, train_phase):
            features = network(tf.cast(inputs["image"], tf.float32), train_phase)
            embeddings = tf.nn.l2_normalize(layers.dense(features, 128, "embedding"), 1)
            return layers.ModelDict(embeddings=embeddings, labels=inputs["label"])

        @staticmethod
        def loss(outputs):
            return metriclearn.triplet_loss(outputs.labels, outputs.embeddings)

    def constants():
        image = np.random.default_rng(0).random((batch, size, size, 3), np.float32)
        image = v1.get_variable("image", initializer=image, trainable=False)
        return {"image": image.read_value(), "label": tf.range(batch, dtype=tf.int64) // 4}

    devices = tower_devices or towers.devices()
    with tf.Graph().as_default():
        replicas = towers.replicate(Model.build, (inputs or constants)(), devices, train_phase=True)
        flops = sum(inspect.count_flops([r.embeddings for r in replicas])[0].values())
        loss, _ = towers.loss_of(Model, replicas, towers.gather(replicas))
        pairs = towers.gradients(Model, replicas, loss, v1.trainable_variables(), devices)
        optimizer = optimizers.create(config, tf.constant(0.01))
        with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
            update = optimizer.apply_gradients(pairs)
        with v1.Session(config=towers.session_config(config, devices)) as session:
            session.run(v1.global_variables_initializer())
            yield session.make_callable([loss, update]), 3 * flops


@contextlib.contextmanager
def mining(batch, dimension, options, config, device=None):
    """Yields functions that run one step each: E E^T, then the loss with each of `options`."""
    with tf.Graph().as_default(), tf.device(device):
        values = np.random.default_rng(0).standard_normal((batch, dimension), np.float32)
        embeddings = v1.get_variable("e", initializer=values)
        labels = tf.constant(np.arange(batch) // 4)
        # One element is fetched, so that nothing but the product is timed and nothing is pruned.
        fetches = [tf.matmul(embeddings, embeddings, transpose_b=True)[0, 0]]
        for option in options:
            loss = metriclearn.triplet_loss(labels, embeddings, **option)
            fetches.append([loss, tf.convert_to_tensor(tf.gradients(loss, embeddings)[0])[0, 0]])
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            yield [session.make_callable(f) for f in fetches]
