"""Evaluates an embedding against a catalogue: numbers, and the pictures behind them.

    python -m retrieval.eval --model=models.simple [--checkpoint=PREFIX] [--any.config.key=value]

restores a checkpoint of the experiment (the newest one unless told), embeds the model's
`retrieval_query` and `retrieval_index` datasets and writes to `<experiment>/analysis`. The
experiment's own config.json is the configuration; flags given here override it.
"""

import json
import os
import sys

import numpy as np
from absl import flags

from retrieval import files, index, metrics, pictures
from trainer import config as trainer_config

SHOWN = 12  # queries in the picture
TOP = 5  # results beside each


def define_flags():
    flags.DEFINE_string("model", None, "Model module, such as models.simple.", short_name="m")
    flags.DEFINE_string("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    flags.DEFINE_enum(
        "similarity", "cosine", metrics.SIMILARITIES, "How near two embeddings are to each other."
    )
    flags.DEFINE_integer("top", 20, "Retrieved items to list for each query.", lower_bound=TOP)


def main(model, given, rest):
    """Evaluates `model` (a module); `given`: the config keys that the command line set."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    options = flags.FLAGS
    folder, checkpoint = locate(model, given, options.checkpoint)
    step = _step_of(checkpoint)
    output = os.path.join(folder, "analysis")
    os.makedirs(output, exist_ok=True)
    try:
        queries, catalogue = embed_both(model, checkpoint)
        result, found = evaluate(queries, catalogue, options.similarity, options.top)
        prefix = os.path.join(output, f"model-{step}")
        draw = pick(found["model"], len(queries))
        panels = _panels(model, queries, catalogue, found, draw)
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    result = {"checkpoint": checkpoint, "step": step, **result}
    files.write_json(f"{prefix}-eval.json", result)
    files.write_json(
        f"{prefix}-top_retrieved.json", top_retrieved(queries, catalogue, *found["model"])
    )
    pictures.top_retrieved(f"{prefix}-top_retrieved.png", panels, TOP)
    print_table(result)
    print(f"Wrote {prefix}-eval.json, …-top_retrieved.json and …-top_retrieved.png")
    return 0


def locate(model, given, checkpoint):
    """The experiment's folder and checkpoint; takes the experiment's own configuration over."""
    from trainer import quiet

    quiet.import_tensorflow()
    from trainer import checkpoints, experiment

    folder = experiment.directory(model.config)
    if checkpoint is None:
        checkpoint = checkpoints.latest(os.path.join(folder, "checkpoint"))
        if checkpoint is None:
            raise trainer_config.UserError(
                f"no checkpoint in {folder}: train one first with "
                f"python -m trainer.main --model={model.__name__}, or name one with --checkpoint"
            )
    else:
        checkpoint = checkpoints.find(checkpoint)
        # A checkpoint belongs to the experiment whose folder it lies in.
        folder = os.path.dirname(os.path.dirname(os.path.abspath(checkpoint)))
    saved = os.path.join(folder, "config.json")
    if os.path.exists(saved):
        with open(saved, encoding="utf-8") as text:
            values = json.load(text)
        model.config.restore({k: v for k, v in values.items() if k not in given})
    return folder, checkpoint


def _step_of(checkpoint):
    from trainer import checkpoints

    return checkpoints.step_of(checkpoint)


def embed_both(model, checkpoint):
    from retrieval import embed

    names = ["retrieval_query", "retrieval_index"]
    found = embed.embed_datasets(model, names, checkpoint)
    return [found[name] for name in names]


def evaluate(queries, catalogue, similarity, top):
    """Compares the model with raw pixels.

    queries, catalogue: `retrieval.embed.Embedded`. Returns (figures, {'model' and 'raw_pixels':
    (scores [Q, top], rows [Q, top])}), the query itself left out of what was found.
    """
    figures, found = {}, {}
    for name, q, c in (
        ("model", queries.embeddings, catalogue.embeddings),
        ("raw_pixels", queries.pixels, catalogue.pixels),
    ):
        q, c = np.asarray(q, np.float32), np.asarray(c, np.float32)
        kind = similarity if name == "model" else "euclidean"
        ranking = metrics.rank_queries(
            q, queries.products, c, catalogue.products,
            query_ids=queries.ids, catalogue_ids=catalogue.ids, similarity=kind,
        )  # fmt: skip
        figures[name] = metrics.summarize(ranking)
        # One more than asked for, since the query itself may be among them.
        scores, rows = index.search(index.flat(c, kind), q, min(top + 1, len(c)), kind)
        found[name] = without_self(scores, rows, queries.ids, catalogue.ids, top)
    result = figures["model"]
    result["num_catalogue"] = len(catalogue)
    result["similarity"] = similarity
    result["raw_pixels"] = figures["raw_pixels"]
    return result, found


def without_self(scores, rows, query_ids, catalogue_ids, top):
    """Moves the query itself behind its results and cuts the lists to `top`."""
    own = (rows >= 0) & (catalogue_ids[rows] == query_ids[:, None])
    order = np.argsort(own, axis=1, kind="stable")[:, :top]
    scores, rows = (np.take_along_axis(a, order, 1) for a in (scores, np.where(own, -1, rows)))
    return np.where(rows < 0, -np.inf, scores), rows


def pick(found, count, seed=0):
    """Rows of the queries to draw: a fixed random choice, in order."""
    random = np.random.default_rng(seed)
    return np.sort(random.choice(count, min(SHOWN, count), replace=False))


def _panels(model, queries, catalogue, found, draw):
    from retrieval import embed

    wanted = {r for _, rows in found.values() for r in rows[draw, :TOP].ravel().tolist() if r >= 0}
    query_images = embed.pictures_of(model, "retrieval_query", queries.ids[draw])
    item_images = embed.pictures_of(model, "retrieval_index", catalogue.ids[sorted(wanted)])
    titles = {"model": "this model", "raw_pixels": "raw pixels"}
    panels = []
    for name, (_, rows) in found.items():
        entries = []
        for q in draw:
            results = [
                (item_images[catalogue.ids[r]], str(catalogue.products[r]), right)
                for r in rows[q, :TOP]
                if r >= 0
                for right in [catalogue.products[r] == queries.products[q]]
            ]
            entries.append(((query_images[queries.ids[q]], str(queries.products[q])), results))
        panels.append((titles[name], entries))
    return panels


def top_retrieved(queries, catalogue, scores, rows):
    """What was found for each query, as plain lists and dictionaries."""
    return [
        {
            "media": str(queries.ids[q]),
            "product": str(queries.products[q]),
            "results": [
                {
                    "media": str(catalogue.ids[r]),
                    "product": str(catalogue.products[r]),
                    "score": round(float(s), 6),
                    "relevant": bool(catalogue.products[r] == queries.products[q]),
                }
                for s, r in zip(scores[q], rows[q], strict=True)
                if r >= 0
            ],
        }
        for q in range(len(queries))
    ]


def print_table(result):
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(title=f"Retrieval at step {result['step']}")
    table.add_column("")
    ks = list(result["recall@k"])
    for name in [*(f"recall@{k}" for k in ks), "MAP@R"]:
        table.add_column(name, justify="right")
    for name, figures in (("this model", result), ("raw pixels", result["raw_pixels"])):
        cells = [*figures["recall@k"].values(), figures["map@r"]]
        table.add_row(name, *(f"{value:.3f}" for value in cells))
    console.print(table)
    print(
        f"{result['num_queries']} queries against {result['num_catalogue']} catalogue items; "
        f"{result['num_unanswerable']} queries have no relevant item and are left out."
    )


def run(argv=None):
    define_flags()
    trainer_config.run(main, argv)


if __name__ == "__main__":
    run()
