"""A color histogram in the graph: products need colors, which ImageNet networks drop."""

import tensorflow as tf

BINS = 8  # bins per channel
SIZE = BINS**3


def histogram(images):
    """Square roots of the 8 x 8 x 8 RGB histogram of each image.

    The dot product of two such vectors is the Bhattacharyya coefficient of the histograms.

    Args:
      images: RGB [B, H, W, 3], 0 to 255, uint8 or float.

    Returns:
      float32 [B, 512], of length 1.
    """
    eighths = tf.cast(tf.cast(images, tf.int32) // (256 // BINS), tf.int32)
    codes = (eighths[..., 0] * BINS + eighths[..., 1]) * BINS + eighths[..., 2]
    codes = tf.reshape(codes, [tf.shape(images)[0], images.shape[1] * images.shape[2]])
    rows = tf.range(tf.shape(codes)[0])[:, None]
    ones = tf.ones_like(codes, tf.float32)
    counts = tf.math.unsorted_segment_sum(ones, codes + SIZE * rows, SIZE * tf.shape(codes)[0])
    return tf.sqrt(tf.reshape(counts, [-1, SIZE]) / int(codes.shape[1]))
