"""ResNet-50 and a vision transformer for timing, from the trainer's thin layers.

The other side, in PyTorch, is peer_train_step.py.
"""

import tensorflow as tf

from trainer import layers

v1 = tf.compat.v1


def resnet50(x, train_phase, blocks=(3, 4, 6, 3)):
    """Features [B, 2048] of ResNet-50 (He et al. 2016, arXiv 1512.03385, table 1)."""

    def convolve(x, filters, size, name, strides=1):
        x = layers.conv2d(x, filters, size, name, strides=strides, use_bias=False)
        return layers.batch_norm(x, train_phase, f"{name}_norm")

    x = tf.nn.relu(convolve(x, 64, 7, "stem", 2))
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for stage, count in enumerate(blocks):
        filters = 64 * 2**stage
        for block in range(count):
            strides = 2 if stage and not block else 1
            with v1.variable_scope(f"stage{stage}_block{block}"):
                y = tf.nn.relu(convolve(x, filters, 1, "first"))
                y = tf.nn.relu(convolve(y, filters, 3, "second", strides))
                y = convolve(y, 4 * filters, 1, "third")
                if not block:
                    x = convolve(x, 4 * filters, 1, "shortcut", strides)
                x = tf.nn.relu(x + y)
    return tf.reduce_mean(x, [1, 2])


def vit(x, train_phase, depth=12, width=384, heads=6, patch=16):
    """Features [B, width] of ViT-S/16 (Dosovitskiy et al. 2021, arXiv 2010.11929), their mean."""
    x = layers.conv2d(x, width, patch, "patches", strides=patch, padding="VALID")
    count = int(x.shape[1]) * int(x.shape[2])
    normal = v1.random_normal_initializer(stddev=0.02)
    x = tf.reshape(x, [-1, count, width])
    x += v1.get_variable("positions", [count, width], initializer=normal)

    def dense(x, units, name):
        flat = layers.dense(tf.reshape(x, [-1, int(x.shape[-1])]), units, name)
        return tf.reshape(flat, [-1, count, units])

    for block in range(depth):
        with v1.variable_scope(f"block{block}"):
            queries, keys, values = (
                tf.transpose(tf.reshape(each, [-1, count, heads, width // heads]), [0, 2, 1, 3])
                for each in tf.split(dense(_norm(x, "norm1"), 3 * width, "qkv"), 3, axis=2)
            )
            scores = tf.matmul(queries, keys, transpose_b=True) * (width // heads) ** -0.5
            mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), values), [0, 2, 1, 3])
            x += dense(tf.reshape(mixed, [-1, count, width]), width, "attention")
            x += dense(tf.nn.gelu(dense(_norm(x, "norm2"), 4 * width, "wide")), width, "narrow")
    return tf.reduce_mean(_norm(x, "norm"), 1)


def _norm(x, name):
    """Layer normalization over the last axis."""
    width = int(x.shape[-1])
    with v1.variable_scope(name):
        gamma = v1.get_variable("gamma", [width], initializer=v1.ones_initializer())
        beta = v1.get_variable("beta", [width], initializer=v1.zeros_initializer())
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-6) * gamma + beta
