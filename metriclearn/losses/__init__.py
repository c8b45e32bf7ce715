"""Losses: pure functions `loss(labels, embeddings, *, options)`; each docstring cites its paper."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from metriclearn.inputs import TensorLike
from metriclearn.losses.contrast import (
    angular_loss,
    instance_loss,
    n_pairs_loss,
    nca_loss,
    nt_xent_loss,
    tuplet_margin_loss,
)
from metriclearn.losses.distributions import (
    dynamic_soft_margin_loss,
    histogram_loss,
)
from metriclearn.losses.hinges import (
    contrastive_loss,
    intra_pair_variance_loss,
    ranked_list_loss,
    snr_contrastive_loss,
    threshold_consistent_margin_loss,
)
from metriclearn.losses.manifold import manifold_loss
from metriclearn.losses.pairwise import (
    circle_loss,
    generalized_lifted_structured_loss,
    lifted_structured_loss,
    margin_loss,
    multi_similarity_loss,
    supervised_contrastive_loss,
)
from metriclearn.losses.proxies import (
    arcface_loss,
    cosface_loss,
    large_margin_softmax_loss,
    normalised_softmax_loss,
    p2sgrad_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    soft_triple_loss,
    sphereface_loss,
    sub_center_arcface_loss,
)
from metriclearn.losses.ranking import (
    fast_ap_loss,
    pnp_loss,
    recall_at_k_loss,
    smooth_ap_loss,
)
from metriclearn.losses.triplet import triplet_loss
from metriclearn.losses.views import barlow_twins_loss, simsiam_loss, vicreg_loss
from metriclearn.registry import check_options, resolve

# `(labels, embeddings, *, options)`.
LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "angular": angular_loss,
    "barlow_twins": barlow_twins_loss,
    "circle": circle_loss,
    "contrastive": contrastive_loss,
    "dynamic_soft_margin": dynamic_soft_margin_loss,
    "fast_ap": fast_ap_loss,
    "generalized_lifted_structured": generalized_lifted_structured_loss,
    "histogram": histogram_loss,
    "instance": instance_loss,
    "intra_pair_variance": intra_pair_variance_loss,
    "lifted_structured": lifted_structured_loss,
    "margin": margin_loss,
    "multi_similarity": multi_similarity_loss,
    "n_pairs": n_pairs_loss,
    "nca": nca_loss,
    "nt_xent": nt_xent_loss,
    "pnp": pnp_loss,
    "ranked_list": ranked_list_loss,
    "recall_at_k": recall_at_k_loss,
    "simsiam": simsiam_loss,
    "smooth_ap": smooth_ap_loss,
    "snr_contrastive": snr_contrastive_loss,
    "supervised_contrastive": supervised_contrastive_loss,
    "threshold_consistent_margin": threshold_consistent_margin_loss,
    "triplet": triplet_loss,
    "tuplet_margin": tuplet_margin_loss,
    "vicreg": vicreg_loss,
}

# `(labels, embeddings, proxies, *, options)`.
PROXY_LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "arcface": arcface_loss,
    "cosface": cosface_loss,
    "large_margin_softmax": large_margin_softmax_loss,
    "manifold": manifold_loss,
    "normalised_softmax": normalised_softmax_loss,
    "p2sgrad": p2sgrad_loss,
    "proxy_anchor": proxy_anchor_loss,
    "proxy_nca": proxy_nca_loss,
    "soft_triple": soft_triple_loss,
    "sphereface": sphereface_loss,
    "sub_center_arcface": sub_center_arcface_loss,
}


def weighted_sum(
    *terms: Sequence[Any],
) -> Callable[[TensorLike, TensorLike], tf.Tensor]:
    """Combines several losses with weights to one loss `(labels, embeddings)`.

        weighted_sum(("triplet", 1.0), ("threshold_consistent_margin", 0.5))

    Args:
        terms: (loss, weight) or (loss, weight, options): a name in `LOSSES` or a function
            `(labels, embeddings)`, such as a `functools.partial` that binds proxies; its factor; a
            dict of its options.

    Raises:
        ValueError: there is no term, a name is unknown, or a loss has no such option.
    """
    if not terms:
        raise ValueError("a weighted sum needs at least one loss")
    summands = []
    for name, weight, *rest in terms:
        loss, options = resolve(name, LOSSES, "loss"), rest[0] if rest else {}
        check_options(loss, options, f"loss {name!r}")
        summands.append((loss, weight, options))

    def weighted_sum_loss(labels: TensorLike, embeddings: TensorLike) -> tf.Tensor:
        return tf.add_n([w * loss(labels, embeddings, **options) for loss, w, options in summands])

    return weighted_sum_loss
