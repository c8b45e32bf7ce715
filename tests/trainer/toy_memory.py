"""A toy model whose loss reads what a loss over all workers may read: every type of row, proxies,
a memory of past batches.
"""

import tensorflow as tf
from toy import config, datasets

import metriclearn
from trainer import layers

__all__ = ["build", "config", "datasets", "loss"]

v1 = tf.compat.v1


def build(inputs=None, train_phase=False):
    m = layers.ModelDict()
    m.hidden = layers.dropout(tf.nn.relu(layers.dense(inputs["x"], 8, "hidden")), 0.3, train_phase)
    frozen = layers.batch_norm(m.hidden[:, None, None], False, "frozen")  # by stored averages
    m.embeddings = layers.dense(frozen[:, 0, 0], 6, "embedding")
    m.labels = tf.cast(inputs["y"] > 0, tf.uint8)
    m.place, m.half = inputs["id"], tf.cast(inputs["y"], tf.bfloat16)
    m.scale = tf.reduce_mean(inputs["y"])
    m.unused = tf.zeros([tf.shape(inputs["y"])[0], 1 << 20])  # too large to be gathered each step
    m.train_phase = train_phase
    return m


def loss(outputs):
    batch = tf.cast(outputs.labels, tf.int64), outputs.embeddings
    with v1.variable_scope(v1.get_variable_scope(), reuse=v1.AUTO_REUSE):
        proxies = v1.get_variable("proxies", [2, 6], initializer=v1.random_normal_initializer())
    value = metriclearn.proxy_anchor_loss(*batch, proxies)
    # Only in this order do the places give the weights of the examples.
    place = tf.strings.to_number(tf.strings.regex_replace(outputs.place, ".*/", ""))
    weights = place + tf.cast(outputs.half, tf.float32)
    value += tf.reduce_mean(tf.square(outputs.embeddings) * weights[:, None]) / 100
    if outputs.train_phase:
        with v1.variable_scope(v1.get_variable_scope(), reuse=v1.AUTO_REUSE):
            memory = metriclearn.cross_batch_memory(40, 6)
        references = metriclearn.enqueue(memory, *batch)
        value += metriclearn.contrastive_loss(*batch, references=references)
    return value
