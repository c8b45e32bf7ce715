import functools

import numpy as np
import pytest
import reference
import tensorflow as tf

import metriclearn
from metriclearn import triplet_loss

pytestmark = pytest.mark.numeric
LINE = np.array([[0.0], [1.0], [4.0], [9.0]])


def value_and_gradient(labels, embeddings, **options):
    x = tf.constant(embeddings)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = triplet_loss(labels, x, **options)
    gradient = tape.gradient(loss, x)
    assert gradient is not None, "the loss must stay connected to the embeddings"
    return loss.numpy(), tf.convert_to_tensor(gradient).numpy()


@pytest.mark.parametrize(
    "labels, expected", [("0011", 3.5), ("0012", 2.5), ("0123", 0.0), ("0000", 0.0)]
)
def test_golden_points_on_a_line(labels, expected):
    loss, gradient = value_and_gradient(list(labels), LINE, margin=5.0)
    assert loss == expected
    if not expected:
        np.testing.assert_array_equal(gradient, np.zeros_like(LINE))


@pytest.mark.parametrize("distance", sorted(metriclearn.DISTANCES))
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("miner", ["batch_hard", "batch_all"])
def test_values_and_gradients_match_the_loop(miner, soft, distance):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 9)
    embeddings = rng.normal(size=(9, 3))

    def loop(x, reduction):
        d = reference.distances(distance, x, x)
        triplets = getattr(reference, miner)(labels, d) if miner == "batch_hard" else None
        triplets = triplets or reference.batch_all(labels)
        return reference.triplet_loss(triplets, d, 0.7, soft, reduction)

    options = {"margin": 0.7, "soft_margin": soft, "miner": miner, "distance": distance}
    for reduction in "mean", "nonzero_mean", "sum":
        loss, gradient = value_and_gradient(labels, embeddings, reduction=reduction, **options)
        np.testing.assert_allclose(loss, loop(embeddings, reduction), rtol=1e-10)
        wanted = reference.gradient(functools.partial(loop, reduction=reduction), embeddings)
        np.testing.assert_allclose(gradient, wanted, atol=1e-7)
    terms = triplet_loss(labels, embeddings, reduction="none", **options)
    np.testing.assert_allclose(terms, loop(embeddings, "none"), rtol=1e-10)


def test_ties_go_to_the_lowest_index():
    embeddings = np.array([[0.0], [1.0], [-1.0], [2.0], [-2.0], [2.0]])
    mined = metriclearn.mine_batch_hard([0, 0, 0, 1, 2, 3], embeddings)
    assert mined.positives[0] == 1
    assert mined.negatives[0] == 3


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2**53, 2**53, 2**53 + 1, 2**53 + 1]),
        np.array(["a", "a", "b", "b"]),
        np.array([0, 0, 1, 1], np.uint8),
    ],
    ids=["beyond 2^53", "strings", "uint8"],
)
def test_label_dtypes(labels):
    assert triplet_loss(labels, LINE, margin=5.0) == 3.5


def test_block_by_block_is_the_same(monkeypatch):
    rng = np.random.default_rng(4)
    labels, embeddings = rng.integers(0, 6, 23), rng.normal(size=(23, 4))
    whole = metriclearn.mine_batch_hard(labels, embeddings)
    monkeypatch.setattr("metriclearn.scan.BLOCK_ELEMENTS", 5 * 23)
    blocked = metriclearn.mine_batch_hard(labels, embeddings)
    assert [tuple(t) for t in np.transpose(blocked)] == [tuple(t) for t in np.transpose(whole)]
    d = reference.distances("euclidean", embeddings, embeddings)
    assert [tuple(t) for t in np.transpose(whole)] == reference.batch_hard(labels, d)


def test_in_a_v1_graph_of_unknown_shape_and_in_a_function():
    with tf.Graph().as_default():
        labels = tf.compat.v1.placeholder(tf.string, [None])
        embeddings = tf.compat.v1.placeholder(tf.float32, [None, 1])
        loss = triplet_loss(labels, embeddings, margin=5.0)
        gradient = tf.convert_to_tensor(tf.gradients(loss, embeddings)[0])
        with tf.compat.v1.Session() as session:
            feed = {labels: list("0011"), embeddings: LINE}
            assert session.run(loss, feed) == 3.5
            assert np.abs(session.run(gradient, feed)).sum() > 0
            feed[labels] = list("0123")
            assert session.run(loss, feed) == 0
    assert tf.function(functools.partial(triplet_loss, margin=5.0))([0, 0, 1, 1], LINE) == 3.5


def test_a_function_may_be_the_miner():
    def first(labels, embeddings):
        return [0], [1], [2]

    assert triplet_loss([0, 0, 1, 1], LINE, miner=first, margin=5.0) == 1 - 4 + 5
    bound = functools.partial(metriclearn.mine_batch_hard, distance="squared")
    assert triplet_loss([0, 0, 1, 1], LINE, miner=bound, margin=5.0) == 3.5


@pytest.mark.bfloat16
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    loss = triplet_loss([0, 0, 1, 1], tf.cast(LINE, dtype), margin=5.0)
    assert loss.dtype == tf.float32
    assert loss == 3.5


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([0, 0], LINE), {}, "2 labels for 4 embeddings"),
        (([0.5] * 4, LINE), {}, "labels given as floats must be whole numbers up to 16777216"),
        (([0] * 4, LINE[:, 0]), {}, "embeddings must be a matrix"),
        (([0] * 4, LINE), {"miner": "batch_hrad"}, "did you mean 'batch_hard'"),
        (([0] * 4, LINE), {"reduction": "average"}, "unknown reduction 'average'"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        triplet_loss(*arguments, **options)
