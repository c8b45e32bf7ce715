import functools

import numpy as np
import pytest
import reference
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import metriclearn
from metriclearn import miners

pytestmark = pytest.mark.numeric


def triplets(mined):
    return [tuple(int(i) for i in t) for t in zip(*mined, strict=True)]


def batch(seed=0, size=14, classes=4, dimension=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, size), rng.normal(size=(size, dimension))


@pytest.mark.parametrize("distance", sorted(metriclearn.DISTANCES))
@pytest.mark.parametrize(
    "name, options",
    [
        ("batch_hard", {}),
        ("easy_positive", {"negative": "semi_hard"}),
        ("easy_positive", {"negative": "hard"}),
        ("semi_hard", {"margin": 0.3}),
        ("semi_hard", {"margin": None}),
        ("semi_hard", {"margin": 0.3, "fallback": "farthest"}),
        ("semi_hard", {"margin": None, "fallback": "hardest"}),
        ("top_k_hard", {"k": 3}),
        ("top_k_hard", {"k": 99}),
    ],
    ids=str,
)
def test_miners_match_the_loops(name, options, distance):
    for seed in range(3):
        labels, x = batch(seed)
        d = reference.distances(distance, x, x)
        mined = triplets(metriclearn.MINERS[name](labels, x, distance=distance, **options))
        assert mined == getattr(reference, name)(labels, d, **options)
        assert mined, "a case that mines nothing shows nothing"


@pytest.mark.parametrize("distance", sorted(metriclearn.DISTANCES))
def test_guard_suspends_what_is_suspiciously_near(distance):
    labels, x = batch(1)
    d = reference.distances(distance, x, x)
    guard = np.median(d)
    options = {"distance": distance, "false_negative_guard": guard}
    for name in "semi_hard", "easy_positive", "top_k_hard":
        mined = triplets(metriclearn.MINERS[name](labels, x, **options))
        assert mined == getattr(reference, name)(labels, d, guard=guard)
    suspended = miners.count_suspended(labels, x, guard, distance=distance)
    other = labels[:, None] != labels
    np.testing.assert_array_equal(suspended, ((d < guard) & other).sum(axis=1))
    hard = triplets(metriclearn.mine_batch_hard(labels, x, **options))
    assert all(d[a, n] >= guard for a, _, n in hard)


@pytest.mark.parametrize("negatives", ["both", "intra", "cross"])
def test_given_positives_take_negatives_from_either_side(negatives):
    rng = np.random.default_rng(2)
    products = rng.integers(0, 5, 8)
    labels, x = np.concatenate([products, products]), rng.normal(size=(16, 3))
    mined = triplets(metriclearn.mine_given_positive(labels, x, negatives=negatives))
    d = reference.distances("euclidean", x, x)
    assert mined == reference.given_positive(labels, d, negatives)


def test_distance_weighted_draws_by_wu_et_al():
    labels, x = batch(3, size=20, dimension=4)
    draws = tf.random.stateless_uniform([20, np.bincount(labels).max()], (5, 7), dtype=tf.float64)
    mined = triplets(metriclearn.mine_distance_weighted(labels, x, seed=(5, 7)))
    assert mined == reference.distance_weighted(labels, x, draws.numpy())
    # With a cutoff that nothing reaches, all negatives are equally likely.
    mined = metriclearn.mine_distance_weighted(labels, x, seed=(5, 7), nonzero_loss_cutoff=0.1)
    wanted = reference.distance_weighted(labels, x, draws.numpy(), nonzero_loss_cutoff=0.1)
    assert triplets(mined) == wanted


def test_distance_weighted_frequencies_follow_the_weights():
    angles = np.array([0, 0.01, 0.6, 0.9, 1.2])  # radians on the unit circle; D=2 still differs
    x = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1)
    labels = np.array([0, 0, 1, 2, 3])
    mine = tf.function(
        lambda step: metriclearn.mine_distance_weighted(labels, x, seed=[1, step]).negatives[0]
    )
    drawn = np.bincount([int(mine(tf.constant(i))) for i in range(3000)], minlength=5)[2:] / 3000
    d = 2 * np.sin(angles[2:] / 2)
    weights = 1 / (d**2 * np.sqrt(1 - d**2 / 4))
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.03)


def test_semi_hard_sorts_where_passes_would_be_many(monkeypatch):
    labels, x = batch(4, size=30, classes=2)
    passes = triplets(metriclearn.mine_semi_hard(labels, x))
    monkeypatch.setattr(miners, "PASSES", 1)
    assert triplets(metriclearn.mine_semi_hard(labels, x)) == passes


@pytest.mark.parametrize("name", sorted(set(metriclearn.MINERS) - {"batch_all"}))
def test_blocks_do_not_change_what_is_mined(name, monkeypatch):
    labels, x = batch(5, size=24, classes=6)
    labels[12:] = labels[:12]  # as pairs, for given_positive
    whole = triplets(metriclearn.MINERS[name](labels, x))
    monkeypatch.setattr("metriclearn.pairs.BLOCK_ELEMENTS", 24 * 5)
    assert triplets(metriclearn.MINERS[name](labels, x)) == whole
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        shapeless = tf.compat.v1.placeholder(tf.float64, [None, None])
        mined = metriclearn.MINERS[name](tf.constant(labels), shapeless)
        assert triplets(session.run(mined, {shapeless: x})) == whole


@pytest.mark.parametrize("name", sorted(metriclearn.MINERS))
def test_an_empty_batch_yields_no_triplets(name):
    """Also where the graph does not know that it is empty."""

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 4], tf.float32)]
    )
    def mine(labels, embeddings):
        return metriclearn.MINERS[name](labels, embeddings)

    assert [len(rows) for rows in mine(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))] == [
        0
    ] * 3


def test_references_stand_in_for_the_batch():
    labels, x = batch(6)
    itself = metriclearn.References(labels, x, np.arange(14))
    for name in "batch_hard", "semi_hard", "easy_positive", "batch_all":
        mine = metriclearn.MINERS[name]
        assert triplets(mine(labels, x, references=itself)) == triplets(mine(labels, x))
    # Two strangers in front: their indices shift the rest, and one of them is nearest to anchor 0.
    shifted = metriclearn.References(
        np.concatenate([[7, 8], labels]), np.concatenate([x[:1], x[:1] + 9, x]), np.arange(14) + 2
    )
    mined = metriclearn.mine_batch_hard(labels, x, references=shifted)
    assert mined.negatives[0] == 0
    alone = metriclearn.mine_batch_hard(labels, x)
    np.testing.assert_array_equal(mined.positives, alone.positives + 2)


@pytest.mark.bfloat16
def test_bfloat16_ranks_and_float32_measures():
    rng = np.random.default_rng(7)
    labels, x = np.arange(64) // 4, rng.normal(size=(64, 16)).astype(np.float32)
    full = metriclearn.triplet_loss(labels, x)
    half = metriclearn.triplet_loss(labels, x, mining_dtype="bfloat16")
    np.testing.assert_allclose(half, full, rtol=2e-2)
    assert half.dtype == tf.float32


@settings(max_examples=40)
@given(st.data())
def test_any_batch_of_small_integers(data):
    """Integer coordinates: distances are exact, so ties, duplicates and zero vectors abound."""
    size = data.draw(st.integers(1, 9))
    kind = data.draw(st.sampled_from(["int64", "int32", "uint8", "str"]))
    draws = st.lists(st.integers(0, 3), min_size=size, max_size=size)
    labels = np.array(data.draw(draws)).astype(kind)
    x = np.array([data.draw(st.lists(st.integers(-2, 2), min_size=2, max_size=2)) for _ in labels])
    x = x.astype(data.draw(st.sampled_from(["float32", "float64"])))
    d = reference.distances("squared", x, x)
    for name in "batch_hard", "semi_hard", "easy_positive", "top_k_hard":
        mine = functools.partial(metriclearn.MINERS[name], distance="squared")
        assert triplets(mine(labels, x)) == getattr(reference, name)(labels, d)
    assert triplets(metriclearn.mine_batch_all(labels, x)) == reference.batch_all(labels)
    for miner in "batch_hard", "batch_all", "semi_hard":
        loss = metriclearn.triplet_loss(labels, x, miner=miner, distance="squared", margin=1.0)
        assert np.isfinite(loss)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda y, x: metriclearn.mine_semi_hard(y, x, fallback="fartest"), "mean 'farthest'"),
        (lambda y, x: metriclearn.mine_easy_positive(y, x, negative="soft"), "unknown negative"),
        (lambda y, x: metriclearn.mine_batch_hard(y, x, distance="l2"), "unknown distance 'l2'"),
    ],
)
def test_unknown_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*batch())
