"""EfficientNet-Lite0 to Lite4 (Tan and Le 2019, arXiv 1905.11946, without squeeze-and-excitation
and with ReLU6; stem, head, and the first and last stages' depths are not scaled).

Variables are named after their place: `stem`, `blocks_00` to `blocks_15` (Lite0), `head`, `logits`;
within a block `expand`, `depthwise`, `project`; each convolution has `kernel` and `norm/gamma`,
`norm/beta`, `norm/moving_mean`, `norm/moving_variance`. `blocks_1|head` thus selects the last
blocks.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from trainer import layers

v1 = tf.compat.v1

FEATURES = 1280
CLASSES = 1000
_EPSILON = 1e-3


class Variant(NamedTuple):
    """Factors on channels and depth, and the side of the training images."""

    width: float
    depth: float
    image_size: int


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224),
    "efficientnet_lite1": Variant(1.0, 1.1, 240),
    "efficientnet_lite2": Variant(1.1, 1.2, 260),
    "efficientnet_lite3": Variant(1.2, 1.4, 280),
    "efficientnet_lite4": Variant(1.4, 1.8, 300),
}


class Block(NamedTuple):
    """An inverted bottleneck: side of the kernel, stride, factor on inner channels, channels."""

    size: int
    strides: int
    expansion: int
    filters: int


_STAGES = (  # (repeats, first block) per stage; the other blocks have stride 1
    (1, Block(3, 1, 1, 16)),
    (2, Block(3, 2, 6, 24)),
    (2, Block(5, 2, 6, 40)),
    (3, Block(3, 2, 6, 80)),
    (3, Block(5, 1, 6, 112)),
    (4, Block(5, 2, 6, 192)),
    (1, Block(3, 1, 6, 320)),
)


def blocks(name):
    """The list of `Block`s of a variant, scaled."""
    width, depth, _ = VARIANTS[name]
    scaled = []
    for stage, (repeats, block) in enumerate(_STAGES):
        block = block._replace(filters=_channels(block.filters * width))
        if stage not in (0, len(_STAGES) - 1):
            repeats = math.ceil(repeats * depth)
        scaled += [block] + [block._replace(strides=1)] * (repeats - 1)
    return scaled


def _channels(wanted):
    """The nearest multiple of 8 that is at least 0.9 times the number."""
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


def normalise(images):
    """Pixels as in the networks' training: RGB 0 to 255 of any dtype -> (x - 127) / 128."""
    return (tf.cast(images, tf.float32) - 127) / 128


def features(images, name, batch_statistics):
    """The network without its classifier.

    Args:
      images: RGB [B, H, W, 3], 0 to 255, uint8 or float; any H and W, known or not.
      name: a key of VARIANTS.
      batch_statistics: Python bool: normalize by the batch and update the moving averages.
        Otherwise the averages are folded into the kernels, which saves passes over activations.

    Returns:
      float32 [B, 1280], the mean over positions of the last layer.
    """

    def convolve(x, scope, filters, size, strides=1):
        return _convolve(x, scope, filters, size, strides, batch_statistics)

    x = tf.nn.relu6(convolve(normalise(images), "stem", 32, 3, 2))
    for i, block in enumerate(blocks(name)):
        with v1.variable_scope(f"blocks_{i:02d}"):
            before, inside = x, int(x.shape[-1]) * block.expansion
            if block.expansion > 1:
                x = tf.nn.relu6(convolve(x, "expand", inside, 1))
            x = tf.nn.relu6(convolve(x, "depthwise", None, block.size, block.strides))
            x = convolve(x, "project", block.filters, 1)
            if block.strides == 1 and before.shape[-1] == block.filters:
                x += before
    x = tf.nn.relu6(convolve(x, "head", FEATURES, 1))
    return tf.reduce_mean(x, [1, 2])


def logits(features):
    """The classifier for ImageNet's 1,000 classes: [B, 1280] -> [B, 1000]."""
    return layers.dense(features, CLASSES, "logits")


def _convolve(x, scope, filters, size, strides, batch_statistics):
    """Convolution and batch norm; depthwise if `filters` is None."""
    with v1.variable_scope(scope):
        channels = int(x.shape[-1])
        shape = [size, size, channels, filters or 1]
        kernel = v1.get_variable("kernel", shape)
        if batch_statistics:
            return layers.batch_norm(_apply(x, kernel, filters, strides), True, "norm")
        with v1.variable_scope("norm"):
            gamma, beta, mean, variance = (
                v1.get_variable(name, [filters or channels], trainable=not name.startswith("mov"))
                for name in ("gamma", "beta", "moving_mean", "moving_variance")
            )
        scale = gamma * tf.math.rsqrt(variance + _EPSILON)
        folded = kernel * (scale if filters else scale[:, None])
        return tf.nn.bias_add(_apply(x, folded, filters, strides), beta - mean * scale)


def _apply(x, kernel, filters, strides):
    if filters is None:
        return tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], "SAME")
    return tf.nn.conv2d(x, kernel, strides, "SAME")
