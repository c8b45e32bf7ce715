"""Miners: which triplets of a batch a loss uses.

A miner is a function `(labels [B], embeddings [B, D], ...) -> Triplets`, or its name in `MINERS`.
It returns indices only, so it carries no gradient.

Some return `Pairs`, of which a loss over triplets combines those of one anchor.

Candidates are ranked by one matrix product. References with equal embeddings tie exactly, and ties
go to the lowest index; distances of different rows are compared to within the rounding of the
product.

They share these options, unless their signature lacks one:
    distance: a name in `DISTANCES` or a `Distance`.
    references: a `References` to mine in; the batch itself if None.
    mining_dtype: floating-point dtype of the matrix product, such as 'bfloat16'.
    false_negative_guard: a distance. References of another class that are nearer to the anchor than
        this are assumed to be wrong labels and are not mined. `count_suspended` counts them.
They raise ValueError for an unknown name, and for labels and embeddings that do not fit together.
The number of triplets depends on the data, and XLA has no such sizes. Compiled by it, the miners
that scan rows (`nearest`, and `mine_distance_weighted`) pad what they return, with anchors of -1,
which losses skip; the others refuse, by name.
"""

import inspect
from collections.abc import Callable
from typing import Any

from metriclearn.inputs import TensorLike
from metriclearn.miners.matrices import (
    mine_angular,
    mine_batch_all,
    mine_batch_easy_hard,
    mine_hdc,
    mine_multi_similarity,
    mine_pair_margin,
    mine_triplet_margin,
)
from metriclearn.miners.nearest import (
    count_suspended as count_suspended,
)
from metriclearn.miners.nearest import (
    mine_batch_hard,
    mine_easy_positive,
    mine_given_positive,
    mine_semi_hard,
    mine_top_k_hard,
)
from metriclearn.miners.results import Pairs, Triplets
from metriclearn.miners.sampled import mine_distance_weighted, mine_uniform_histogram
from metriclearn.registry import resolve


def call_miner(
    miner: str | Callable[..., Any], labels: TensorLike, embeddings: TensorLike, **options: Any
) -> Triplets:
    """Calls a miner for a loss over triplets, with the loss's options.

    Args:
        miner: a name in `MINERS`, or a function `(labels, embeddings) -> Triplets` or `Pairs`, such
            as a `functools.partial` of one here.
        labels: `[B]`.
        embeddings: `[B, D]`.
        options: the loss's own. `distance` and `margin` are also used by the loss, so a miner may
            lack them or bind others. `references` and `mining_dtype` are the miner's to honor.

    Raises:
        ValueError: the miner cannot honor `references` or `mining_dtype`, or binds other ones.
    """
    mined = _call(miner, labels, embeddings, options)
    return mined.triplets() if isinstance(mined, Pairs) else mined


def mine_pairs(
    miner: str | Callable[..., Any], labels: TensorLike, embeddings: TensorLike, **options: Any
) -> Pairs:
    """`call_miner` for a loss over pairs: those of mined triplets, each as often as it occurs."""
    mined = _call(miner, labels, embeddings, options)
    if isinstance(mined, Pairs):
        return mined
    return Pairs(mined.anchors, mined.positives, mined.anchors, mined.negatives)


def _call(
    miner: str | Callable[..., Any],
    labels: TensorLike,
    embeddings: TensorLike,
    options: dict[str, Any],
) -> Triplets | Pairs:
    function = resolve(miner, MINERS, "miner")
    name = miner if isinstance(miner, str) else getattr(function, "__name__", repr(function))
    bound = getattr(function, "keywords", {})
    parameters = inspect.signature(function).parameters
    for option in ("references", "mining_dtype"):
        value, own = options.get(option), bound.get(option)
        if value is not None and option not in parameters:
            raise ValueError(f"the miner {name} takes no {option}")
        # The loss must know references, which it measures; how a miner ranks may be bound.
        if own is not None and own is not value and (value is not None or option == "references"):
            raise ValueError(f"the miner {name} binds {option}: pass it to the loss instead")
    taken = {k: v for k, v in options.items() if k in parameters and k not in bound}
    mined = tuple(function(labels, embeddings, **taken))
    return Pairs(*mined) if len(mined) == len(Pairs._fields) else Triplets(*mined)


MINERS: dict[str, Callable[..., Triplets | Pairs]] = {
    "angular": mine_angular,
    "batch_all": mine_batch_all,
    "batch_easy_hard": mine_batch_easy_hard,
    "batch_hard": mine_batch_hard,
    "distance_weighted": mine_distance_weighted,
    "easy_positive": mine_easy_positive,
    "given_positive": mine_given_positive,
    "hdc": mine_hdc,
    "multi_similarity": mine_multi_similarity,
    "pair_margin": mine_pair_margin,
    "semi_hard": mine_semi_hard,
    "top_k_hard": mine_top_k_hard,
    "triplet_margin": mine_triplet_margin,
    "uniform_histogram": mine_uniform_histogram,
}
