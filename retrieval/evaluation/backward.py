"""Backward compatibility: a new model's queries against the catalogue that an old one embedded.

See `retrieval.compare`, whose command line runs this and whose page shows it.
"""

import os
import sys

from retrieval.evaluation import figures as evaluation
from retrieval.evaluation import index_loss
from retrieval.evaluation import inputs as stored
from retrieval.reports import outputs

PAIRS = {  # of queries and catalogue, by the folder of their evaluation
    "old": ("old_queries", "old_catalogue"),
    "new_on_old": ("new_queries", "old_catalogue"),
    "new": ("new_queries", "new_catalogue"),
}


def evaluate(stores, output, similarity="cosine"):
    """Evaluates the new model's queries against the old model's catalogue.

    stores: {'old_queries', 'new_queries', 'old_catalogue', maybe 'new_catalogue': folder}, of a
    store, or of an index for a catalogue. Writes an evaluation a pair, to output/old and so on.
    Returns ({figure: {'old', 'new_on_old', 'new', 'share_of_gain'}}, the last two only with the new
    catalogue; {id: image file}, of what the stores know).
    """
    sets = {name: stored.load(folder, name=name) for name, folder in stores.items()}
    pairs = {name: pair for name, pair in PAIRS.items() if pair[1] in sets}
    _check_pairs(stores, sets, pairs)
    figures = {}
    for name, (queries, catalogue) in pairs.items():
        q, c = sets[queries], sets[catalogue]
        print(f"evaluating {queries} against {catalogue}", file=sys.stderr)
        try:
            result = evaluation.evaluate(q, c, similarity=similarity)
            figures[name] = {"queries": stores[queries], "catalogue": stores[catalogue]}
            figures[name]["made_by"] = stored.made_by([stores[queries], stores[catalogue]])
            figures[name] |= result.figures
            if stored.is_index(stores[catalogue]):
                figures[name]["index"] = index_loss.losses(q, c, result, stores[catalogue])
        except ValueError as error:
            raise ValueError(f"{stores[queries]} against {stores[catalogue]}: {error}") from None
        folder = os.path.join(output, name)
        os.makedirs(folder, exist_ok=True)
        outputs.write_stored(os.path.join(folder, "embeddings"), figures[name], result, q, c)
    rates = {
        f"recall@{k}": {name: f["recall@k"][k] for name, f in figures.items()}
        for k in figures["old"]["recall@k"]
    }
    rates["map@r"] = {name: f["map@r"] for name, f in figures.items()}
    searched = {name: f["index"] for name, f in figures.items() if "index" in f}
    if searched:
        for k in figures["old"]["recall@k"]:
            found = {name: index["recall@k"][k] for name, index in searched.items()}
            rates[f"recall@{k} through the index"] = found
    for values in rates.values():
        if "new" in values and "old" in values:
            gain = values["new"] - values["old"]
            share = (values["new_on_old"] - values["old"]) / gain if gain > 0 else float("nan")
            values["share_of_gain"] = share
    pictures = {}
    for items in sets.values():
        if items.paths is not None:
            pairs = zip(items.ids.tolist(), items.paths.tolist(), strict=True)
            pictures |= {name: path for name, path in pairs if path}
    return rates, pictures


def _check_pairs(stores, sets, pairs):
    """Refuses what is mixed up, and models of different dimensions."""
    for queries, catalogue in pairs.values():
        q, c = (sets[name].embeddings.shape[1] for name in (queries, catalogue))
        if q != c:
            raise ValueError(
                f"--{queries}={stores[queries]} has {q} dimensions and --{catalogue}="
                f"{stores[catalogue]} {c}: an old catalogue can serve a new model of as many "
                "dimensions only; train one, or embed the catalogue anew"
            )
    for model in ("old", "new"):
        names = [name for name in (f"{model}_queries", f"{model}_catalogue") if name in sets]
        made = {stored.origin(stores[name])["checkpoint_sha256"] for name in names}
        if len(made - {None}) > 1:
            raise ValueError(
                f"--{names[0]}={stores[names[0]]} and --{names[1]}={stores[names[1]]} were "
                f"embedded with different weights: both must be those of the {model} model"
            )
