"""The thin layers against NumPy, and randomness that does not depend on how a batch is split."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import layers

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(4, 6, 6, 8)).astype(np.float32)


def run(build, *extra):
    """Returns (output, {variable name: value}, *extra fetches of the graph)."""
    with tf.Graph().as_default() as graph, v1.Session() as session:
        y = build(tf.constant(X))
        session.run(v1.global_variables_initializer())
        variables = {v.op.name: v for v in v1.global_variables()}
        values = session.run([y, variables])
        return (*values, *(f(session, graph) for f in extra))


def rounding(terms, subscripts, a, b):
    """The most that sums of `terms` float32 products may be off, in whatever order they are added
    (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1)."""
    return terms * 2.0**-24 * np.einsum(subscripts, np.abs(a), np.abs(b)).max()


def test_conv2d_and_dense():
    y, v = run(lambda x: layers.conv2d(x, 3, 3, "c", strides=2, padding="VALID"))
    # The window of output (1, 1).
    products = "bhwc,hwcf->bf", X[:, 2:5, 4 - 2 : 4 + 1].astype(np.float64), v["c/kernel"]
    expected = np.einsum(*products) + v["c/bias"]
    atol = rounding(3 * 3 * 8 + 1, *products)
    np.testing.assert_allclose(y[:, 1, 1], expected, rtol=0, atol=atol)
    y, v = run(lambda x: layers.dense(x[:, 0, 0], 5, "d"))
    products = "bc,cf->bf", X[:, 0, 0].astype(np.float64), v["d/kernel"]
    expected = np.einsum(*products) + v["d/bias"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=rounding(8 + 1, *products))
    y, v = run(lambda x: layers.dense(x[:, 0, 0], 5, "d", use_bias=False))
    assert list(v) == ["d/kernel"]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size, strides", [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1), (5, 2)])
def test_gradients_of_a_large_kernel_at_few_positions(size, strides, padding):
    x, filters = X[:1, :5, :, :] if size > 1 else X[:1, :2, :3, :], 3
    outputs = [-(-n // strides) if padding == "SAME" else (n - size) // strides + 1
               for n in x.shape[1:3]]  # fmt: skip
    weights = RANDOM.normal(size=(1, *outputs, filters)).astype(np.float32)

    def gradients(session, graph):
        inputs = graph.get_tensor_by_name("Const:0")
        (kernel,) = v1.global_variables()
        total = tf.reduce_sum(weights * graph.get_tensor_by_name("convolved:0"))
        found = tf.gradients(total, [inputs, kernel])
        # Of second order: the sum of the kernel's gradient is linear in x.
        again = tf.gradients(tf.reduce_sum(found[1]), inputs)[0]
        assert not {op.type for op in graph.get_operations()} & {"Conv2DBackpropFilter"}
        return session.run([*found, again])

    with tf.Graph().as_default() as graph, v1.Session() as session:
        y = layers.conv2d(tf.constant(x), filters, size, "c", strides=strides, padding=padding,
                          use_bias=False)  # fmt: skip
        tf.identity(y, "convolved")
        assert y.shape == (1, *outputs, filters)
        session.run(v1.global_variables_initializer())
        found = gradients(session, graph)
        kernel = session.run(v1.global_variables()[0])

    before = [max((m - 1) * strides + size - n, 0) // 2 if padding == "SAME" else 0
              for m, n in zip(outputs, x.shape[1:3], strict=True)]  # fmt: skip
    expected = np.zeros(x.shape), np.zeros(kernel.shape), np.zeros(x.shape)
    for r, c, i, j in np.ndindex(*outputs, size, size):
        at = r * strides + i - before[0], c * strides + j - before[1]
        if all(0 <= place < n for place, n in zip(at, x.shape[1:3], strict=True)):
            w = weights[0, r, c].astype(np.float64)
            expected[0][0, *at] += kernel[i, j] @ w
            expected[1][i, j] += np.outer(x[0, *at], w)
            expected[2][0, *at] += w.sum()
    for each, exact in zip(found, expected, strict=True):
        # At most that many products of numbers below 5, summed in any order.
        atol = max(np.prod(outputs), size * size * filters) ** 2 * 2.0**-24 * 25
        np.testing.assert_allclose(each, exact, rtol=0, atol=atol)


def test_depthwise_conv2d_filters_each_channel_alone():
    y, v = run(lambda x: layers.depthwise_conv2d(x, 3, "d", padding="VALID", use_bias=False))
    products = "bhwc,hwc->bc", X[:, 1:4, 2:5].astype(np.float64), v["d/kernel"][..., 0]
    atol = rounding(3 * 3, *products)
    np.testing.assert_allclose(y[:, 1, 2], np.einsum(*products), rtol=0, atol=atol)


def test_group_norm():
    y, _ = run(lambda x: layers.group_norm(x, 2, "g"))
    grouped = X.reshape(4, 36, 2, 4)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    np.testing.assert_allclose(
        y, ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(X.shape), rtol=1e-3, atol=1e-5
    )
    with pytest.raises(ValueError, match="8 channels in 3 groups"):
        run(lambda x: layers.group_norm(x, 3, "g"))


def test_batch_norm_in_training_and_after():
    def update(session, graph):
        session.run(graph.get_collection(v1.GraphKeys.UPDATE_OPS))
        return session.run({v.op.name: v for v in v1.global_variables()})

    y, _, v = run(lambda x: layers.batch_norm(x, True, "b", momentum=0.9), update)
    mean, var = X.mean((0, 1, 2)), X.var((0, 1, 2))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-3), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(v["b/moving_mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    unbiased = X.reshape(-1, 8).var(0, ddof=1)
    np.testing.assert_allclose(v["b/moving_variance"], 0.9 + 0.1 * unbiased, rtol=1e-4)

    y, _, updates = run(
        lambda x: layers.batch_norm(x, False, "b"),
        lambda s, g: g.get_collection(v1.GraphKeys.UPDATE_OPS),
    )
    np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-3), rtol=1e-4)
    assert updates == []


def draws(offset, batch, step=3, shape=(5,), seed=1, calls=1):
    with tf.Graph().as_default(), v1.Session() as session:
        step, offset = tf.constant(step, tf.int64), tf.constant(offset, tf.int64)
        with layers.replica(seed, step, offset):
            drawn = [layers.random_uniform(shape, tf.constant(batch)) for _ in range(calls)]
        return session.run(drawn[-1])


@pytest.mark.parametrize("shape", [(5,), (), (4, 3), (7, 7, 3)])
def test_random_numbers_belong_to_the_example_and_not_to_its_tower(shape):
    whole = draws(0, 8, shape=shape)
    parts = [draws(i, 2, shape=shape) for i in (0, 2, 4, 6)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_random_numbers_differ_by_step_seed_layer_and_example():
    whole = draws(0, 8)
    others = [draws(0, 8, step=4), draws(0, 8, seed=2), draws(0, 8, calls=2), draws(8, 8)]
    for other in others:
        assert not np.intersect1d(whole, other).size
    assert len(np.unique(whole)) == whole.size


def test_random_numbers_are_uniform():
    x = draws(0, 4000, shape=(10,)).ravel()
    counts, _ = np.histogram(x, bins=20, range=(0, 1))
    chi2 = ((counts - x.size / 20) ** 2 / (x.size / 20)).sum()
    assert chi2 < 43.8  # 99.9th percentile for 19 degrees of freedom; the seed is fixed


def test_dropout_zeroes_a_share_and_scales_the_rest():
    with tf.Graph().as_default(), v1.Session() as session:
        zero = tf.zeros([], tf.int64)
        with layers.replica(0, zero, zero):
            y = session.run(layers.dropout(tf.ones([100, 50]), 0.2, True))
    np.testing.assert_allclose(np.unique(y), [0, 1.25])
    assert abs((y == 0).mean() - 0.2) < 0.02
    x = tf.ones([2, 2])
    assert layers.dropout(x, 0.2, False) is x


def test_model_dict():
    m = layers.ModelDict()
    m.a = 1
    m["b"] = 2
    assert (m.a, m.b, m.last, list(m)) == (1, 2, 2, ["a", "b"])
    with pytest.raises(AttributeError, match="no output 'c'; it has a, b"):
        m.c  # noqa: B018
