import functools
import inspect

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
    if len(mined) == 4:  # pairs of each kind
        return [triplets(mined[:2]), triplets(mined[2:])]
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


MINERS_OF_DISTANCE = ("batch_hard", "semi_hard", "easy_positive", "top_k_hard")


@pytest.mark.parametrize("size", [9, 33])
@pytest.mark.parametrize("dimension", [3, 37])
@pytest.mark.parametrize("distance", sorted(metriclearn.DISTANCES))
def test_copies_of_one_row_tie(distance, dimension, size):
    x = np.tile(np.random.default_rng(size).normal(size=dimension).astype(np.float32), (size, 1))
    labels = np.arange(size) % 4
    still = np.zeros((size, size))  # all distances are the same
    options = {"distance": distance}
    for name in MINERS_OF_DISTANCE:
        wanted = getattr(reference, name)(labels, still)
        assert triplets(metriclearn.MINERS[name](labels, x, **options)) == wanted
    mined = metriclearn.mine_semi_hard(labels, x, margin=None, fallback="farthest", **options)
    wanted = reference.semi_hard(labels, still, margin=None, fallback="farthest")
    assert triplets(mined) == wanted


@pytest.mark.parametrize("distance", sorted(metriclearn.DISTANCES))
def test_copies_are_ordinary_data(distance):
    """Rows repeated within and across classes, in float32: the choice is that of exact ties."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(12, 29)).astype(np.float32)[rng.integers(0, 12, 50)]
        x[rng.integers(0, 50, 3)] = 0
        labels = rng.integers(0, 6, 50)
        labels[25:] = labels[:25]
        d = reference.distances(distance, x, x)
        for name in MINERS_OF_DISTANCE:
            mined = triplets(metriclearn.MINERS[name](labels, x, distance=distance))
            assert mined == getattr(reference, name)(labels, d), name
        mined = triplets(metriclearn.mine_given_positive(labels, x, distance=distance))
        assert mined == reference.given_positive(labels, d)
        references = metriclearn.References(labels, x, np.arange(50))
        mined = metriclearn.mine_batch_hard(labels, x, distance=distance, references=references)
        assert triplets(mined) == reference.batch_hard(labels, d)


@pytest.mark.parametrize("distance", sorted(metriclearn.DISTANCES))
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_mining_is_right_over_the_range(scale, distance):
    labels, x = batch(8, size=24, dimension=6)
    x = (x * scale).astype(np.float32)
    d = reference.distances(distance, x, x)
    for name in "batch_hard", "easy_positive", "top_k_hard":
        mined = triplets(metriclearn.MINERS[name](labels, x, distance=distance))
        assert mined == getattr(reference, name)(labels, d)
    farther = triplets(metriclearn.mine_semi_hard(labels, x, margin=None, distance=distance))
    assert farther == reference.semi_hard(labels, d, margin=None)
    if distance in ("squared", "dot") and not 1e-18 <= scale <= 1:
        return  # as a float32, the guard itself is out of range
    guard = np.median(d)
    guarded = metriclearn.mine_batch_hard(labels, x, distance=distance, false_negative_guard=guard)
    chosen = [(a, n) for a, _, n in triplets(guarded)]
    assert chosen == [(a, n) for a, _, n in reference.top_k_hard(labels, d, k=1, guard=guard)]


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_collapsed_embeddings_are_still_told_apart(distance):
    rng = np.random.default_rng(9)
    x = (1 + 1e-4 * rng.normal(size=(40, 16))).astype(np.float32)
    labels = np.arange(40) % 8
    d = reference.distances(distance, x, x)
    mined = triplets(metriclearn.mine_batch_hard(labels, x, distance=distance))
    assert mined == reference.batch_hard(labels, d)


@pytest.mark.bfloat16
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_any_float_may_rank(dtype):
    labels, x = batch(10)
    x = x.astype(np.float32) * 1e4  # squares are beyond float16
    mined = triplets(metriclearn.mine_batch_hard(labels, x, mining_dtype=dtype))
    d = reference.distances("euclidean", x, x)
    for (a, p, n), (_, best_p, best_n) in zip(mined, reference.batch_hard(labels, d), strict=True):
        assert d[a, p] >= 0.97 * d[a, best_p] and d[a, n] <= 1.03 * d[a, best_n] + 300
    with pytest.raises(ValueError, match="mining_dtype must be floating point, got int32"):
        metriclearn.mine_batch_hard(labels, x, mining_dtype="int32")


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [0, 1, 1, 0], [0, 1, 2, 0, 1, 3]], ids=["odd", "swapped", "one off"]
)
def test_given_positives_must_be_pairs(labels):
    x = np.ones((len(labels), 2), np.float32)
    with pytest.raises(ValueError, match="N queries followed by the positive of each"):
        metriclearn.mine_given_positive(labels, x)
    mine = tf.function(
        lambda y, x: metriclearn.mine_given_positive(y, x),
        input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 2], tf.float32)],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="N queries followed by"):
        mine(labels, x)


def taking(*names):
    """A miner whose signature names just these options."""
    source = f"def miner(labels, embeddings, *, {', '.join(f'{n}=None' for n in names)}): ..."
    namespace = {}
    exec(source if names else source.replace(", *, ", ""), namespace)
    return namespace["miner"]


@pytest.mark.bfloat16
@pytest.mark.parametrize("loss", ["triplet", "margin"])
@pytest.mark.parametrize("miner", [*sorted(metriclearn.MINERS), taking(), taking("distance")])
def test_an_option_that_a_miner_cannot_honor_is_refused(miner, loss):
    """Each option, with each miner: it takes effect, or the loss raises."""
    labels, x = batch(11)
    labels[7:] = labels[:7]
    elsewhere = metriclearn.References(labels[::-1], x[::-1] * 2, np.arange(14)[::-1])
    takes = inspect.signature(metriclearn.MINERS.get(miner, miner)).parameters
    for option, value in {"references": elsewhere, "mining_dtype": "float64"}.items():
        if option == "mining_dtype" and loss == "margin":
            continue  # the loss has no such option
        call = functools.partial(
            metriclearn.LOSSES[loss], labels, x, miner=miner, **{option: value}
        )
        if option not in takes:
            with pytest.raises(ValueError, match=f"takes no {option}"):
                call()
        elif option == "references":
            bound = functools.partial(metriclearn.MINERS[miner], references=elsewhere)
            comparison = metriclearn.LOSSES[loss](labels, x, miner=bound, references=elsewhere)
            np.testing.assert_allclose(call(), comparison, rtol=1e-12)
            assert not np.isclose(call(), metriclearn.LOSSES[loss](labels, x, miner=miner))
        else:
            assert np.isfinite(call())


@pytest.mark.bfloat16
def test_an_option_bound_to_another_value_is_refused():
    labels, x = batch(12)
    bound = functools.partial(metriclearn.mine_batch_hard, mining_dtype="bfloat16")
    with pytest.raises(ValueError, match="binds mining_dtype: pass it to the loss instead"):
        metriclearn.triplet_loss(labels, x, miner=bound, mining_dtype="float64")
    assert np.isfinite(metriclearn.triplet_loss(labels, x, miner=bound))
    references = metriclearn.References(labels, x, np.arange(14))
    bound = functools.partial(metriclearn.mine_batch_hard, references=references)
    with pytest.raises(ValueError, match="binds references"):
        metriclearn.triplet_loss(labels, x, miner=bound)


@pytest.mark.parametrize("negatives", ["both", "intra", "cross"])
def test_given_positives_take_negatives_from_either_side(negatives):
    rng = np.random.default_rng(2)
    products = rng.integers(0, 5, 8)
    labels, x = np.concatenate([products, products]), rng.normal(size=(16, 3))
    mined = triplets(metriclearn.mine_given_positive(labels, x, negatives=negatives))
    d = reference.distances("euclidean", x, x)
    assert mined == reference.given_positive(labels, d, negatives)


@pytest.mark.parametrize("name", sorted(set(metriclearn.MINERS) - {"batch_all"}))
def test_blocks_do_not_change_what_is_mined(name, monkeypatch):
    labels, x = batch(5, size=24, classes=6)
    labels[12:] = labels[:12]  # as pairs, for given_positive
    whole = triplets(metriclearn.MINERS[name](labels, x))
    monkeypatch.setattr("metriclearn.scan.BLOCK_ELEMENTS", 24 * 5)
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

    mined = mine(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    assert not any(len(rows) for rows in mined)


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
        (lambda y, x: metriclearn.mine_top_k_hard(y, x, k=0), "k=0 must be at least 1"),
    ],
)
def test_unknown_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*batch())
