"""Metric learning for TensorFlow: distances, miners, losses, samplers, augmentation, data sets.

Works in tf.compat.v1 graphs, inside tf.function and eagerly; needs TensorFlow and NumPy only.
"""

from metriclearn.distances import DISTANCES, Distance, pairwise_distances
from metriclearn.losses import LOSSES, triplet_loss
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
from metriclearn.samplers import pk_sampler

__all__ = [
    "DISTANCES",
    "LOSSES",
    "MINERS",
    "Distance",
    "References",
    "Triplets",
    "count_suspended",
    "mine_batch_all",
    "mine_batch_hard",
    "mine_distance_weighted",
    "mine_easy_positive",
    "mine_given_positive",
    "mine_semi_hard",
    "mine_top_k_hard",
    "pairwise_distances",
    "pk_sampler",
    "triplet_loss",
]
