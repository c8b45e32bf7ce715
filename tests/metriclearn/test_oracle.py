"""Against vectors that pytorch-metric-learning computed once; make_oracle.py says how."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from metriclearn.losses import LOSSES, PROXY_LOSSES

pytestmark = pytest.mark.numeric
ORACLE = json.loads(pathlib.Path(__file__).with_name("oracle.json").read_text())


@pytest.mark.parametrize("vector", ORACLE["vectors"], ids=lambda v: f"{v['loss']} {v['options']}")
def test_value_and_gradient(vector):
    labels, x = np.array(ORACLE["labels"]), tf.constant(ORACLE["embeddings"], tf.float64)
    name, options = vector["loss"], vector["options"]
    with tf.GradientTape() as tape:
        tape.watch(x)
        if name in PROXY_LOSSES:
            proxies = np.array(ORACLE["proxies"])
            value = PROXY_LOSSES[name](labels, x, proxies, **options)
        else:
            value = LOSSES[name](labels, x, **options)
    np.testing.assert_allclose(value, vector["value"], rtol=1e-6)
    gradient = tf.convert_to_tensor(tape.gradient(value, x))
    np.testing.assert_allclose(gradient, vector["gradient"], atol=1e-6)
