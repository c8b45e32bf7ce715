"""One vector per image from maps and tokens."""

import numpy as np
import pytest
import tensorflow as tf

from models.backbones.pooling import pool

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
TOKENS = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)  # class, register, 4


def pooled(x, method, query=None, **options):
    with tf.Graph().as_default(), v1.Session() as session:
        found = pool(tf.constant(x), method, **options)
        gradients = [v1.gradients(found, [v])[0] for v in v1.trainable_variables()]
        session.run(v1.global_variables_initializer())
        if query is not None:
            (variable,) = v1.trainable_variables()
            variable.load(query, session)
        assert all(np.isfinite(session.run(g)).all() and g is not None for g in gradients)
        return session.run(found)


def test_each_method_is_its_formula():
    patches = TOKENS[:, 2:].astype(np.float64)
    query = np.array([1.0, -2.0, 0.5, 0.0], np.float32)
    scores = np.exp(patches @ query / 2)
    expected = {
        "auto": TOKENS[:, 0],
        "class_token": TOKENS[:, 0],
        "mean": patches.mean(1),
        "gem": (np.maximum(patches, 1e-6) ** 3).mean(1) ** (1 / 3),
        "concat": np.concatenate([TOKENS[:, 0], patches.mean(1)], 1),
    }
    for method, value in expected.items():
        found = pooled(TOKENS, method, prefix=2, class_token=True)
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=method)
    found = pooled(TOKENS, "attention", query, prefix=2, class_token=True)
    weights = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(
        found, np.einsum("bn,bnf->bf", weights, patches), rtol=1e-5, atol=1e-6
    )
    found = pooled(TOKENS, "attention", prefix=2)
    np.testing.assert_allclose(found, patches.mean(1), rtol=1e-5, atol=1e-6)


def test_a_map_has_positions_and_a_vector_is_taken_as_it_is():
    maps = TOKENS.reshape(3, 2, 3, 4)
    np.testing.assert_allclose(pooled(maps, "auto"), TOKENS.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled(TOKENS[:, 0], "auto"), TOKENS[:, 0])


@pytest.mark.parametrize(
    ("x", "method", "message"),
    [
        (TOKENS[:, 0], "gem", "model.pooling=gem: the network already pools"),
        (TOKENS, "concat", "model.pooling=concat: the network has no class token"),
        (TOKENS[0, 0], "auto", r"is not \[B, F\]"),
    ],
)
def test_a_method_that_does_not_fit(x, method, message):
    with tf.Graph().as_default(), pytest.raises(ValueError, match=message):
        pool(tf.constant(x), method)
