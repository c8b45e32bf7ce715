"""The color histogram in the graph."""

import numpy as np
import tensorflow as tf

from models.backbones import color
from retrieval.embeddings.store import Embedded
from retrieval.evaluation import baselines


def test_the_histogram_is_that_of_the_baseline():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    text = np.array(["a", "b", "c"])
    items = Embedded(np.zeros((3, 1), np.float32), text, text, text, images)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        found = session.run(color.histogram(tf.constant(images)))
    np.testing.assert_allclose(found, baselines.color_histogram(items).embeddings, atol=1e-6)
