"""Batch-hard from half of the scores, in blocks of a few rows, so that every edge is met."""

import numpy as np
import pytest
import reference
import tensorflow as tf

import metriclearn
from metriclearn import pairs, scan
from metriclearn.miners import halves

pytestmark = pytest.mark.numeric


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(scan, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(halves, "ROWS", 7)


def triplets(mined):
    return [tuple(int(i) for i in t) for t in zip(*mined, strict=True)]


def is_used(labels, x, **options):
    found = halves.among_itself(pairs.compare(labels, x), scan.MiningOptions(**options))
    return found is not None and bool(found[0])


def batch(seed):
    """(labels, rows that differ, of small integers: many distances are equal, exactly)."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(11, 40))
    places = rng.permutation(121)[:size]
    x = np.stack([places // 11, places % 11], 1).astype(np.float32)
    return rng.integers(0, rng.integers(1, size), size), x - 5


# bfloat16 holds these scores exactly, too.
DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)]


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_hardest_are_those_of_the_loops(distance, dtype):
    for seed in range(6):
        labels, x = batch(seed)
        assert is_used(labels, x, distance=distance)
        mined = metriclearn.mine_batch_hard(labels, x, distance=distance, mining_dtype=dtype)
        d = reference.distances(distance, x, x)
        assert triplets(mined) == reference.batch_hard(labels, d)
    for labels in np.zeros(len(x)), np.arange(len(x)):  # no negative, no positive
        assert is_used(labels, x) and triplets(metriclearn.mine_batch_hard(labels, x)) == []


def test_whatever_is_not_ordinary_is_scanned_whole(monkeypatch):
    labels, x = batch(0)
    copies, broken = x.copy(), x.copy()
    copies[1], broken[1] = x[0], np.nan
    for rows in copies, broken, x * 1e30, x + 1e4:
        assert not is_used(labels, rows)
    for options in {"guard": 1.0}, {"distance": "dot"}, {"mining_dtype": "float16"}:
        assert not is_used(labels, x, **options)
    d = reference.distances("euclidean", copies, copies)
    assert triplets(metriclearn.mine_batch_hard(labels, copies)) == reference.batch_hard(labels, d)
    monkeypatch.setattr(halves, "MEMBERS", 1)
    assert not is_used(labels, x)


def test_a_variable_in_a_graph_has_the_gradient_of_the_triplets():
    labels, x = batch(2)
    given = metriclearn.mine_batch_hard(labels, x)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        rows = tf.compat.v1.get_variable("rows", initializer=x)
        losses = [
            metriclearn.triplet_loss(labels, rows, miner=miner)
            for miner in ("batch_hard", lambda *_: [t.numpy() for t in given])
        ]
        gradients = [tf.convert_to_tensor(tf.gradients(loss, rows)[0]) for loss in losses]
        session.run(rows.initializer)
        (one, other), slopes = session.run([losses, gradients])
    assert one == other > 0
    np.testing.assert_array_equal(*slopes)
