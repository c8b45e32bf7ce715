import numpy as np
import pytest
import reference

import metriclearn

pytestmark = pytest.mark.numeric


def test_triplet_statistics_match_the_loop():
    rng = np.random.default_rng(0)
    labels, x = np.arange(12) % 4, rng.normal(size=(12, 3))
    d = reference.distances("euclidean", x, x)
    triplets = reference.batch_all(labels)
    got = metriclearn.triplet_statistics(labels, x, np.transpose(triplets), margin=0.3)
    to_positive = np.array([d[a, p] for a, p, _ in triplets])
    to_negative = np.array([d[a, n] for a, _, n in triplets])
    wanted = {
        "triplets": len(triplets),
        "active": np.mean(to_positive - to_negative + 0.3 > 0),
        "hard": np.mean(to_negative < to_positive),
        "anchor_positive": to_positive.mean(),
        "anchor_negative": to_negative.mean(),
    }
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-12)


def test_nothing_mined_gives_zeros():
    x = np.ones((3, 2))
    mined = metriclearn.mine_batch_hard([0, 1, 2], x)
    got = metriclearn.triplet_statistics([0, 1, 2], x, mined)
    assert {float(v) for v in got.values()} == {0.0}


def test_the_hardest_triplet_is_that_of_the_loop():
    labels, x = np.arange(12) % 4, np.random.default_rng(1).normal(size=(12, 3))
    d = reference.distances("euclidean", x, x)
    triplets = reference.batch_all(labels)
    wanted = max(triplets, key=lambda t: d[t[0], t[1]] - d[t[0], t[2]])
    got = metriclearn.hardest_triplet(x, np.transpose(triplets))
    assert got.numpy().tolist() == list(wanted)
    none = metriclearn.mine_batch_hard([0, 1, 2], np.ones((3, 2)))
    assert metriclearn.hardest_triplet(np.ones((3, 2)), none).numpy().tolist() == [0, 0, 0]


def test_effective_rank_counts_the_directions_in_use():
    axes = np.concatenate([np.eye(4), -np.eye(4)]) * 3.0
    got = metriclearn.embedding_statistics(axes)
    np.testing.assert_allclose(got["effective_rank"], 4, rtol=1e-6)
    np.testing.assert_allclose([got["norm"], got["spread"]], 3, rtol=1e-6)
    line = np.outer(np.arange(5.0), [1, 2, 3])
    np.testing.assert_allclose(metriclearn.embedding_statistics(line)["effective_rank"], 1)
    assert metriclearn.embedding_statistics(np.ones((4, 3)))["effective_rank"] == 0
