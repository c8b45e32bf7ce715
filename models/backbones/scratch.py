"""Convolutional networks to train from scratch, built from the trainer's thin layers."""

import tensorflow as tf

from trainer.layers import batch_norm, conv2d, depthwise_conv2d, group_norm

v1 = tf.compat.v1


def resnet18(pixels, train_phase):
    """ResNet-18 (He et al. 2016, arXiv 1512.03385, table 1), without its classifier.

    Args:
      pixels: float32 [B, H, W, C], normalized.
      train_phase: Python bool.

    Returns:
      Features, float32 [B, 512]: the mean over positions of the last block.
    """
    x = _conv_norm(pixels, 64, 7, train_phase, "stem", strides=2)
    x = tf.nn.max_pool2d(tf.nn.relu(x), 3, 2, "SAME")
    for stage, filters in enumerate((64, 128, 256, 512)):
        for block in range(2):
            strides = 2 if stage and not block else 1
            with v1.variable_scope(f"stage{stage}_block{block}"):
                x = _residual(x, filters, strides, train_phase)
    return tf.reduce_mean(x, [1, 2])


def _residual(x, filters, strides, train_phase):
    y = tf.nn.relu(_conv_norm(x, filters, 3, train_phase, "first", strides=strides))
    y = _conv_norm(y, filters, 3, train_phase, "second")
    if strides > 1 or x.shape[-1] != filters:
        x = _conv_norm(x, filters, 1, train_phase, "shortcut", strides=strides)
    return tf.nn.relu(x + y)


def mobilenet(pixels, train_phase, width=1.0):
    """MobileNet (Howard et al. 2017, arXiv 1704.04861, table 1), without its classifier.

    Args:
      pixels: float32 [B, H, W, C], normalized.
      train_phase: Python bool.
      width: factor on the number of filters.

    Returns:
      Features, float32 [B, 1024 * width]: the mean over positions of the last layer.
    """
    sizes = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    sizes += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    x = tf.nn.relu6(_conv_norm(pixels, int(32 * width), 3, train_phase, "stem", strides=2))
    for i, (filters, strides) in enumerate(sizes):
        with v1.variable_scope(f"block{i}"):
            x = depthwise_conv2d(x, 3, "depthwise", strides=strides, use_bias=False)
            x = tf.nn.relu6(batch_norm(x, train_phase, "depthwise_norm"))
            x = tf.nn.relu6(_conv_norm(x, int(filters * width), 1, train_phase, "pointwise"))
    return tf.reduce_mean(x, [1, 2])


def convnet(pixels, train_phase):
    """Three convolutions that halve the size, for images of about 32 pixels; fast to train.

    Normalization is within each image, so it does not depend on the batch.

    Args:
      pixels: float32 [B, H, W, C], normalized.
      train_phase: Python bool; has no effect here.

    Returns:
      Features, float32 [B, ceil(H / 8) * ceil(W / 8) * 128]: all positions of the last layer.
    """
    x = pixels
    for i, filters in enumerate((32, 64, 128)):
        x = conv2d(x, filters, 3, f"conv{i}", strides=2, use_bias=False)
        x = tf.nn.relu(group_norm(x, 8, f"norm{i}"))
    return tf.reshape(x, [-1, x.shape[1:].num_elements()])


def _conv_norm(x, filters, size, train_phase, name, strides=1):
    x = conv2d(x, filters, size, name, strides=strides, use_bias=False)
    return batch_norm(x, train_phase, f"{name}_norm")
