"""Losses: pure functions `loss(labels, embeddings, *, options)`; each docstring cites its paper."""

from collections.abc import Callable

import tensorflow as tf

from metriclearn.losses.pairwise import (
    circle_loss,
    contrastive_loss,
    lifted_structured_loss,
    margin_loss,
    multi_similarity_loss,
    n_pairs_loss,
    supervised_contrastive_loss,
)
from metriclearn.losses.proxies import (
    arcface_loss,
    cosface_loss,
    normalised_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
)
from metriclearn.losses.ranking import fast_ap_loss, recall_at_k_loss, smooth_ap_loss
from metriclearn.losses.triplet import triplet_loss

# `(labels, embeddings, *, options)`.
LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "circle": circle_loss,
    "contrastive": contrastive_loss,
    "fast_ap": fast_ap_loss,
    "lifted_structured": lifted_structured_loss,
    "margin": margin_loss,
    "multi_similarity": multi_similarity_loss,
    "n_pairs": n_pairs_loss,
    "recall_at_k": recall_at_k_loss,
    "smooth_ap": smooth_ap_loss,
    "supervised_contrastive": supervised_contrastive_loss,
    "triplet": triplet_loss,
}

# `(labels, embeddings, proxies, *, options)`.
PROXY_LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "arcface": arcface_loss,
    "cosface": cosface_loss,
    "normalised_softmax": normalised_softmax_loss,
    "proxy_anchor": proxy_anchor_loss,
    "proxy_nca": proxy_nca_loss,
}
