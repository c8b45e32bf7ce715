"""Metric learning for TensorFlow: distances, miners, losses, samplers, augmentation, data sets.

Works in tf.compat.v1 graphs, in tf.function and eagerly. It needs TensorFlow and NumPy only.
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

# Imported when first used: `metriclearn.datasets` reads lists and files without TensorFlow.
_PUBLIC = {
    "distances": ("DISTANCES", "Distance", "pairwise_distances"),
    "losses": (
        "LOSSES",
        "PROXY_LOSSES",
        "arcface_loss",
        "circle_loss",
        "contrastive_loss",
        "cosface_loss",
        "fast_ap_loss",
        "lifted_structured_loss",
        "margin_loss",
        "multi_similarity_loss",
        "n_pairs_loss",
        "normalised_softmax_loss",
        "proxy_anchor_loss",
        "proxy_nca_loss",
        "recall_at_k_loss",
        "smooth_ap_loss",
        "supervised_contrastive_loss",
        "triplet_loss",
    ),
    "memory": ("Memory", "cross_batch_memory", "enqueue"),
    "miners": (
        "MINERS",
        "Triplets",
        "count_suspended",
        "mine_batch_all",
        "mine_batch_hard",
        "mine_distance_weighted",
        "mine_easy_positive",
        "mine_given_positive",
        "mine_semi_hard",
        "mine_top_k_hard",
    ),
    "pairs": ("References",),
    "samplers": ("balanced_sampler", "hierarchical_sampler", "pair_sampler", "pk_sampler"),
    "statistics": ("embedding_statistics", "hardest_triplet", "triplet_statistics"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metriclearn' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"metriclearn.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
