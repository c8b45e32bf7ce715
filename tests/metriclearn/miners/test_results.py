import numpy as np

import metriclearn


def test_pairs_of_one_anchor_combine_to_triplets():
    pairs = metriclearn.Pairs([0, 0, 2, 3], [1, 4, 5, 6], [2, 0, 0, 1], [7, 8, 9, 9])
    triplets = metriclearn.Pairs(*map(np.array, pairs)).triplets()
    got = list(zip(*(t.numpy().tolist() for t in triplets), strict=True))
    assert got == [(0, 1, 8), (0, 1, 9), (0, 4, 8), (0, 4, 9), (2, 5, 7)]


def test_losses_over_pairs_and_over_triplets_take_either():
    labels, x = np.arange(8) % 3, np.random.default_rng(0).normal(size=(8, 3))
    mined = metriclearn.mine_hdc(labels, x)
    d = metriclearn.pairwise_distances(x).numpy()
    near, far = d[tuple(mined[:2])], np.maximum(0, 3 - d[tuple(mined[2:])])
    got = metriclearn.contrastive_loss(labels, x, negative_margin=3.0, miner="hdc")
    np.testing.assert_allclose(got, near.mean() + far.mean(), rtol=1e-9)
    a, p, n = mined.triplets()
    got = metriclearn.triplet_loss(labels, x, miner="hdc")
    np.testing.assert_allclose(got, np.maximum(0, d[a, p] - d[a, n] + 0.2).mean(), rtol=1e-9)
    a, p, n = metriclearn.mine_batch_hard(labels, x)
    got = metriclearn.contrastive_loss(labels, x, miner="batch_hard", negative_margin=0.0)
    np.testing.assert_allclose(got, d[a, p].mean(), rtol=1e-9)
