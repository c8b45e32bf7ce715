"""Backward compatibility: a new model's queries against the catalogue that an old one embedded.

Source: Shen, Xiong, Xia and Soatto, "Towards Backward-Compatible Representation Learning", CVPR
2020. `retrieval.compare` runs this and shows the result.
"""

import dataclasses
import math
import sys

from retrieval.embeddings.store import Embedded
from retrieval.evaluation import figures, inputs, suite
from retrieval.evaluation.records import Record

PAIRS = {  # {name of an evaluation: its queries and its catalogue}
    "old": ("old_queries", "old_catalogue"),
    "new_on_old": ("new_queries", "old_catalogue"),
    "new": ("new_queries", "new_catalogue"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates(Record):
    """One figure in each evaluation of `PAIRS`; None where it was not computed.

    share_of_gain: the part of the gain from `old` to `new` that `new_on_old` reaches; NaN if there
    is no gain.
    """

    old: float | None = None
    new_on_old: float | None = None
    new: float | None = None
    share_of_gain: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """An evaluation and the sets that it compares."""

    queries: Embedded
    catalogue: Embedded
    evaluation: figures.Evaluation


def evaluate(stores, similarity="cosine") -> dict[str, Evaluated]:
    """Evaluates the new model's queries against the old model's catalogue.

    Args:
      stores: {'old_queries', 'new_queries', 'old_catalogue' and optionally 'new_catalogue': folder
        of a store}. A catalogue may be the folder of an index, which is then also searched.
      similarity: 'cosine', 'dot' or 'euclidean'.

    Returns:
      {name of a pair in `PAIRS`: evaluation}; 'new' only with the new catalogue.

    Raises:
      ValueError: stores are mixed up, models have different dimensions, or a pair does not fit.
    """
    sets = {name: inputs.load(folder, name=name) for name, folder in stores.items()}
    pairs = {name: pair for name, pair in PAIRS.items() if pair[1] in sets}
    _check_pairs(stores, sets, pairs)
    result = {}
    for name, pair in pairs.items():
        paths = [stores[each] for each in pair]
        print(f"evaluating {pair[0]} against {pair[1]}", file=sys.stderr)
        index = paths[1] if inputs.is_index(paths[1]) else None
        q, c = (sets[each] for each in pair)
        try:
            found = suite.evaluate_files(q, c, paths, similarity=similarity, index=index)
        except ValueError as error:
            raise ValueError(f"{paths[0]} against {paths[1]}: {error}") from None
        result[name] = Evaluated(q, c, found)
    return result


def rates(evaluated: dict[str, Evaluated]) -> dict[str, Rates]:
    """Compares what `evaluate` returns, as {figure: rates}."""
    every = {name: each.evaluation.figures for name, each in evaluated.items()}
    ks = every["old"].recall
    values = {f"recall@{k}": {name: f.recall[k] for name, f in every.items()} for k in ks}
    values["map@r"] = {name: f.map_at_r for name, f in every.items()}
    searched = {name: f.index for name, f in every.items() if f.index}
    for k in ks if searched else ():
        found = {name: index.recall[k] for name, index in searched.items()}
        values[f"recall@{k} through the index"] = found
    return {figure: Rates(**each, **_share(**each)) for figure, each in values.items()}


def _share(old=None, new_on_old=None, new=None):
    if old is None or new is None:
        return {}
    gain = new - old
    return {"share_of_gain": (new_on_old - old) / gain if gain > 0 else math.nan}


def _check_pairs(stores, sets, pairs):
    """Refuses stores that are mixed up, and models of different dimensions."""
    for queries, catalogue in pairs.values():
        q, c = (sets[name].embeddings.shape[1] for name in (queries, catalogue))
        if q != c:
            raise ValueError(
                f"--{queries}={stores[queries]} has {q} dimensions and --{catalogue}="
                f"{stores[catalogue]} has {c}: an old catalogue can serve a new model only if both "
                "have the same number of dimensions; train such a model, or embed the catalogue "
                "again"
            )
    for model in ("old", "new"):
        names = [name for name in (f"{model}_queries", f"{model}_catalogue") if name in sets]
        made = {inputs.origin(stores[name])["checkpoint_sha256"] for name in names}
        if len(made - {None}) > 1:
            raise ValueError(
                f"--{names[0]}={stores[names[0]]} and --{names[1]}={stores[names[1]]} were "
                f"embedded with different weights: both must be those of the {model} model"
            )
