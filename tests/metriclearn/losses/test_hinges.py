"""What the hinges do at the edges. Their values are tested in ../test_oracle.py."""

import numpy as np

import metriclearn

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def test_the_two_kinds_of_contrastive_pairs_are_reduced_apart():
    d = metriclearn.pairwise_distances(X).numpy()
    same = (LABELS[:, None] == LABELS) & ~np.eye(8, dtype=bool)
    near, far = d[same], np.maximum(2 - d[LABELS[:, None] != LABELS], 0)
    for reduction, mean in ("mean", np.mean), ("nonzero_mean", lambda t: t[t > 0].mean()):
        got = metriclearn.contrastive_loss(LABELS, X, negative_margin=2.0, reduction=reduction)
        np.testing.assert_allclose(got, mean(near) + mean(far), rtol=1e-5)


def test_threshold_consistency_is_a_contrastive_loss_on_cosines():
    options = {"positive_margin": 0.1, "negative_margin": 0.5, "reduction": "nonzero_mean"}
    wanted = metriclearn.contrastive_loss(LABELS, X, distance="cosine", **options)
    got = metriclearn.threshold_consistent_margin_loss(LABELS, X)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_ratio_of_noise_ignores_offset_and_scale():
    wanted = metriclearn.snr_contrastive_loss(LABELS, X)
    np.testing.assert_allclose(
        metriclearn.snr_contrastive_loss(LABELS, 3 * X + 1), wanted, rtol=1e-5
    )


def test_steep_weights_of_ranked_lists_do_not_overflow():
    steep = metriclearn.ranked_list_loss(
        LABELS, 100 * X, positive_temperature=10.0, negative_temperature=10.0, smoothing=0.0
    )
    assert np.isfinite(steep)
