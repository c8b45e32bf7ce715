"""Histograms. Values are tested in ../test_oracle.py."""

import numpy as np
import tensorflow as tf

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def test_a_running_histogram_weighs_the_past():
    past = tf.Variable(tf.zeros([11]))
    first = metriclearn.dynamic_soft_margin_loss(LABELS, X, histogram_of_past=past)
    np.testing.assert_allclose(first, metriclearn.dynamic_soft_margin_loss(LABELS, X))
    kept = past.numpy()
    np.testing.assert_allclose(kept.sum(), 1, rtol=1e-6)
    metriclearn.dynamic_soft_margin_loss(LABELS, X**2, momentum=0.25, histogram_of_past=past)
    alone = tf.Variable(tf.zeros([11]))
    metriclearn.dynamic_soft_margin_loss(LABELS, X**2, histogram_of_past=alone)
    np.testing.assert_allclose(past, 0.75 * kept + 0.25 * alone.numpy(), rtol=1e-5)
