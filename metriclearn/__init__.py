"""Metric learning for TensorFlow: distances, miners, losses, samplers, augmentation, data sets.

Works in tf.compat.v1 graphs, in tf.function and eagerly. It needs TensorFlow and NumPy only.
"""

from metriclearn.distances import DISTANCES, Distance, pairwise_distances
from metriclearn.losses import (
    LOSSES,
    PROXY_LOSSES,
    arcface_loss,
    circle_loss,
    contrastive_loss,
    cosface_loss,
    fast_ap_loss,
    lifted_structured_loss,
    margin_loss,
    multi_similarity_loss,
    n_pairs_loss,
    normalised_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    recall_at_k_loss,
    smooth_ap_loss,
    supervised_contrastive_loss,
    triplet_loss,
)
from metriclearn.memory import Memory, cross_batch_memory, enqueue
from metriclearn.miners import (
    MINERS,
    Triplets,
    count_suspended,
    mine_batch_all,
    mine_batch_hard,
    mine_distance_weighted,
    mine_easy_positive,
    mine_given_positive,
    mine_semi_hard,
    mine_top_k_hard,
)
from metriclearn.pairs import References
from metriclearn.samplers import (
    balanced_sampler,
    hierarchical_sampler,
    pair_sampler,
    pk_sampler,
)
from metriclearn.statistics import embedding_statistics, hardest_triplet, triplet_statistics

__all__ = [
    "DISTANCES",
    "LOSSES",
    "MINERS",
    "PROXY_LOSSES",
    "Distance",
    "Memory",
    "References",
    "Triplets",
    "arcface_loss",
    "balanced_sampler",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
    "count_suspended",
    "cross_batch_memory",
    "embedding_statistics",
    "enqueue",
    "fast_ap_loss",
    "hardest_triplet",
    "hierarchical_sampler",
    "lifted_structured_loss",
    "margin_loss",
    "mine_batch_all",
    "mine_batch_hard",
    "mine_distance_weighted",
    "mine_easy_positive",
    "mine_given_positive",
    "mine_semi_hard",
    "mine_top_k_hard",
    "multi_similarity_loss",
    "n_pairs_loss",
    "normalised_softmax_loss",
    "pair_sampler",
    "pairwise_distances",
    "pk_sampler",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "recall_at_k_loss",
    "smooth_ap_loss",
    "supervised_contrastive_loss",
    "triplet_loss",
    "triplet_statistics",
]
