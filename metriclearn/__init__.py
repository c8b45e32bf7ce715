"""Metric learning for TensorFlow: distances, miners, losses, samplers, augmentation, data sets.

Works in tf.compat.v1 graphs, in tf.function and eagerly. It needs only TensorFlow and NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metriclearn.distances import *  # noqa: F403
    from metriclearn.losses import *  # noqa: F403
    from metriclearn.memory import *  # noqa: F403
    from metriclearn.miners import *  # noqa: F403
    from metriclearn.pairs import *  # noqa: F403
    from metriclearn.samplers import *  # noqa: F403
    from metriclearn.statistics import *  # noqa: F403

# Imported on first use: `metriclearn.datasets` reads lists and files without TensorFlow.
_PUBLIC = {
    "distances": ("DISTANCES", "Distance", "pairwise_distances"),
    "losses": (
        "LOSSES",
        "PROXY_LOSSES",
        "angular_loss",
        "arcface_loss",
        "barlow_twins_loss",
        "circle_loss",
        "contrastive_loss",
        "cosface_loss",
        "dynamic_soft_margin_loss",
        "fast_ap_loss",
        "generalized_lifted_structured_loss",
        "histogram_loss",
        "instance_loss",
        "intra_pair_variance_loss",
        "large_margin_softmax_loss",
        "lifted_structured_loss",
        "manifold_loss",
        "margin_loss",
        "multi_similarity_loss",
        "n_pairs_loss",
        "nca_loss",
        "normalised_softmax_loss",
        "nt_xent_loss",
        "p2sgrad_loss",
        "pnp_loss",
        "proxy_anchor_loss",
        "proxy_nca_loss",
        "ranked_list_loss",
        "recall_at_k_loss",
        "simsiam_loss",
        "smooth_ap_loss",
        "snr_contrastive_loss",
        "soft_triple_loss",
        "sphereface_loss",
        "sub_center_arcface_loss",
        "supervised_contrastive_loss",
        "threshold_consistent_margin_loss",
        "triplet_loss",
        "tuplet_margin_loss",
        "vicreg_loss",
        "weighted_sum",
    ),
    "memory": ("Memory", "cross_batch_memory", "enqueue"),
    "miners": (
        "MINERS",
        "Pairs",
        "Triplets",
        "count_suspended",
        "mine_angular",
        "mine_batch_all",
        "mine_batch_easy_hard",
        "mine_batch_hard",
        "mine_distance_weighted",
        "mine_easy_positive",
        "mine_given_positive",
        "mine_hdc",
        "mine_multi_similarity",
        "mine_pair_margin",
        "mine_semi_hard",
        "mine_top_k_hard",
        "mine_triplet_margin",
        "mine_uniform_histogram",
    ),
    "pairs": ("References",),
    "samplers": ("balanced_sampler", "hierarchical_sampler", "pair_sampler", "pk_sampler"),
    "statistics": ("embedding_statistics", "hardest_triplet", "triplet_statistics"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "keras":  # the module, which imports Keras
        return importlib.import_module("metriclearn.keras")
    if name not in _HOME:
        raise AttributeError(f"module 'metriclearn' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"metriclearn.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
