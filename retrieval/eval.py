"""Evaluates an embedding against a catalogue: numbers, pictures and a report.

    python -m retrieval.eval --model=models.simple [--checkpoint=PREFIX] [--any.config.key=value]

restores a checkpoint of the experiment (the newest one unless told), embeds the model's
`retrieval_query` and `retrieval_index` datasets and writes to `<experiment>/analysis`. The
experiment's own config.json is the configuration; flags given here override it. A model may declare
`evaluation.precision@k.num_to_retrieve` (--top unless given), `evaluation.precision@k.plot` and
`evaluation.histogram` (false: that picture is not drawn).

    python -m retrieval.eval --queries=q.npy --query_labels=q.txt [--query_ids=q_ids.txt]
        [--catalogue=c.npy --catalogue_labels=c.txt [--catalogue_ids=c_ids.txt]] --output=DIR

evaluates stored embeddings of any origin, without TensorFlow; a folder that retrieval.embed wrote
needs no text files. Labels: one product id a line; ids:
one item id a line, equal ids are the same picture. Without a catalogue the queries are searched
among themselves.
"""

import os
import sys

import faiss
import numpy as np
from absl import flags

from retrieval import evaluation, exact, files, filters, metrics, pictures, report, rerank
from trainer import config as trainer_config

SHOWN = 12  # queries in the picture
# What is drawn, and the key by which a model can do without.
DRAWINGS = {"recall_at_k": "evaluation.precision@k.plot", "histogram": "evaluation.histogram"}


def define_flags():
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("model", None, "Model module, such as models.simple.", short_name="m")
    text("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    text("queries", None, "Evaluate stored embeddings instead: .npy, [queries, dimensions].")
    text("query_labels", None, "Their product ids, one a line.")
    text("query_ids", None, "Their item ids, one a line.")
    text("query_categories", None, "Their categories, one a line.")
    text("catalogue", None, "Stored catalogue: .npy, [items, dimensions]; absent: the queries.")
    text("catalogue_labels", None, "Its product ids, one a line.")
    text("catalogue_ids", None, "Its item ids, one a line.")
    text("catalogue_categories", None, "Its categories, one a line.")
    text("output", None, "Folder for the results; <experiment>/analysis for a model.")
    choice("similarity", "cosine", metrics.SIMILARITIES, "How near two embeddings are.")
    flags.DEFINE_list("ks", list(map(str, metrics.KS)), "Cut-offs of recall@k and precision@k.")
    number("top", 20, "Retrieved items to list for each query.", lower_bound=pictures.TOP)
    text("index", None, "Also report what this FAISS factory, or auto, loses against exact search.")
    flags.DEFINE_list("rerank", [], f"Also try any of {', '.join(rerank.METHODS)} (cosine only).")
    choice("filter", "auto", filters.FILTERS, "What scores are computed in; ranks are the same.")
    number("threads", 0, "Threads to compute with (0: all cores).", lower_bound=0)


def main(model, given, rest):
    """Evaluates `model` (a module); `given`: the config keys that the command line set."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    options = flags.FLAGS
    from retrieval import embed
    from trainer import checkpoints, experiment

    folder, checkpoint = experiment.locate(model, given, options.checkpoint)
    top = "evaluation.precision@k.num_to_retrieve"
    if top in model.config and not options["top"].present:
        options.top = max(model.config[top], pictures.TOP)
    step = checkpoints.step_of(checkpoint)
    output = _folder(options.output or os.path.join(folder, "analysis"))
    prefix = os.path.join(output, f"model-{step}")
    names = ("retrieval_query", "retrieval_index")
    try:
        found = embed.embed_datasets(model, names, checkpoint, threads=options.threads)
        queries, catalogue = (found[name] for name in names)
        results = {"this model": _evaluate(queries, catalogue, options)}
        for name, baseline, similarity in (
            ("raw pixels", evaluation.raw_pixels, "cosine"),
            ("colour histogram", evaluation.color_histogram, "cosine"),
        ):
            results[name] = _evaluate(baseline(queries), baseline(catalogue), options, similarity)
        more = extras(queries, catalogue, results["this model"], options)
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    figures = {"checkpoint": checkpoint, "step": step, "model": model.__name__}
    figures |= results["this model"].figures | more
    figures["raw_pixels"] = results["raw pixels"].figures
    figures["color_histogram"] = results["colour histogram"].figures

    def images(which, ids):
        return embed.pictures_of(model, names[which == "catalogue"], ids)

    drawn = [name for name, key in DRAWINGS.items() if key not in model.config or model.config[key]]
    write(prefix, figures, results, queries, catalogue, images, drawn)
    return 0


def stored():
    """Evaluates embeddings from files."""
    from retrieval import stored as files_of

    options = flags.FLAGS
    if not options.output:
        raise trainer_config.UserError("--output=DIR: name the folder for the results")
    try:
        queries = files_of.load(
            options.queries, options.query_labels, options.query_ids, options.query_categories
        )
        catalogue = queries
        if options.catalogue:
            catalogue = files_of.load(
                *(options.catalogue, options.catalogue_labels, options.catalogue_ids),
                options.catalogue_categories,
                name="catalogue",
            )
        elif options.catalogue_labels or options.catalogue_ids or options.catalogue_categories:
            raise ValueError("--catalogue_labels, _ids and _categories need --catalogue")
        result = _evaluate(queries, catalogue, options)
        more = extras(queries, catalogue, result, options)
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    figures = {"queries": options.queries, "catalogue": options.catalogue, **result.figures, **more}
    prefix = os.path.join(_folder(options.output), "embeddings")
    write_stored(prefix, figures, result, queries, catalogue)


def write_stored(prefix, figures, result, queries, catalogue):
    """Writes the evaluation of stored embeddings, with the pictures that are files."""

    def images(which, ids):
        items = queries if which == "queries" else catalogue
        paths = items.ids if items.paths is None else items.paths
        at = dict(zip(items.ids.tolist(), paths.tolist(), strict=True))
        return report.files_of({name: at[name] for name in ids.tolist()})

    write(prefix, figures, {"embeddings": result}, queries, catalogue, images)


def _evaluate(queries, catalogue, options, similarity=None):
    try:
        ks = tuple(int(k) for k in options.ks)
    except ValueError:
        raise ValueError(f"--ks={','.join(options.ks)}: takes whole numbers") from None
    # FAISS would take a thread for every core, whatever was asked for.
    faiss.omp_set_num_threads(options.threads or exact.cores())
    return evaluation.evaluate(
        queries,
        None if catalogue is queries else catalogue,
        similarity=similarity or options.similarity,
        ks=ks,
        top=options.top,
        threads=options.threads or None,
        filter=options.filter,
    )


def extras(queries, catalogue, result, options):
    """What was asked for besides: the ANN index, re-ranking."""
    unknown = [name for name in options.rerank if name not in rerank.METHODS]
    if unknown:
        raise trainer_config.UserError(
            f"--rerank={unknown[0]}: takes any of {', '.join(rerank.METHODS)}"
        )
    more = {}
    if options.index:
        more["index"] = evaluation.approximate(queries, catalogue, result, options.index)
    if options.rerank:
        if options.similarity != "cosine":
            raise trainer_config.UserError("--rerank works with --similarity=cosine only")
        more["rerank"] = rerank.compare(queries, catalogue, result, options.rerank)
    return more


def _folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise trainer_config.UserError(f"--output={path}: {error.strerror}") from None
    return path


def write(prefix, figures, results, queries, catalogue, images, drawn=tuple(DRAWINGS)):
    """Writes every file of one evaluation and prints its table.

    results: {title: Evaluation}, the one in question first. images(which, ids): pictures {id:
    uint8 image} of 'queries' or 'catalogue', as many as there are. drawn: which of DRAWINGS.
    """
    result = next(iter(results.values()))
    lists = top_retrieved(queries, catalogue, result.scores, result.rows)
    similarity = figures["similarity"]
    histogram = evaluation.similarity_histogram(queries, catalogue, similarity)
    files.write_json(f"{prefix}-eval.json", figures)
    report.write_figures(f"{prefix}-figures.csv", figures)
    files.write_json_list(f"{prefix}-top_retrieved.json", lists)
    files.write_json(f"{prefix}-histogram.json", histogram)
    report.write_csv(f"{prefix}-queries.csv", queries, catalogue, result)
    if "histogram" in drawn:
        pictures.histogram(f"{prefix}-histogram.png", histogram)
    curves = {title: pictures.recall_curve(r.ranking) for title, r in results.items()}
    if "recall_at_k" in drawn:
        pictures.recall_at_k(f"{prefix}-recall_at_k.png", curves)
    gallery = report.gallery(queries, catalogue, result)
    shown = some_rows(len(queries), SHOWN)
    wanted = report.wanted(gallery, results, shown)
    query_images = images("queries", queries.ids[sorted(wanted["queries"])])
    item_images = images("catalogue", catalogue.ids[sorted(wanted["catalogue"])])
    if query_images and item_images:
        beside = dict(list(results.items())[:2])  # the colour histogram has no place there
        panels = pictures.panels(queries, catalogue, beside, shown, query_images, item_images)
        pictures.top_retrieved(f"{prefix}-top_retrieved.png", panels)
    report.write(
        f"{prefix}-report.html",
        figures=figures,
        curves=curves,
        histogram=histogram,
        gallery=gallery,
        queries=queries,
        catalogue=catalogue,
        result=result,
        images=(query_images, item_images),
    )
    report.write_suspects(f"{prefix}-suspected_labels.csv", gallery, queries, catalogue)
    print_table(figures, results)
    print(f"Wrote {prefix}-report.html and, beside it, its figures as JSON, CSV and PNG.")


def some_rows(count, wanted, seed=0):
    """A fixed random choice of rows, in order."""
    random = np.random.default_rng(seed)
    return np.sort(random.permutation(count)[:wanted]).tolist()


def top_retrieved(queries, catalogue, scores, rows):
    """What was found for each query, as plain lists and dictionaries."""
    right = catalogue.products[rows] == queries.products[:, None]
    return [
        {
            "media": str(queries.ids[q]),
            "product": str(queries.products[q]),
            "results": [
                {
                    "media": str(catalogue.ids[r]),
                    "product": str(catalogue.products[r]),
                    "score": round(float(s), 6),
                    "relevant": bool(ok),
                }
                for s, r, ok in zip(scores[q], rows[q], right[q], strict=True)
                if r >= 0
            ],
        }
        for q in range(len(queries))
    ]


def print_table(figures, results):
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    step = f" at step {figures['step']}" if "step" in figures else ""
    table = Table(title=f"Retrieval{step}")
    table.add_column("")
    ks = list(figures["recall@k"])
    for name in [*(f"recall@{k}" for k in ks), "MAP@R"]:
        table.add_column(name, justify="right")
    for title, result in results.items():
        cells = [*result.figures["recall@k"].values(), result.figures["map@r"]]
        table.add_row(title, *(f"{value:.3f}" for value in cells))
    if "index" in figures:
        found = figures["index"]
        cells = [f"{value:.3f}" for value in found["recall@k"].values()]
        table.add_row(f"index {found['factory']}", *cells, "")
    for method, found in figures.get("rerank", {}).items():
        cells = [f"{value:.3f}" for value in found["recall@k"].values()]
        rate = f"{found['map@r']:.3f}" if "map@r" in found else ""
        table.add_row(f"with {method}", *cells, rate)
    low_high = [figures["interval95"][name] for name in [*(f"recall@{k}" for k in ks), "map@r"]]
    table.add_row("95% interval", *(f"{low:.3f}-{high:.3f}" for low, high in low_high), style="dim")
    console.print(table)
    print(
        f"{figures['num_queries']} queries against {figures['num_catalogue']} catalogue items; "
        f"{figures['num_unanswerable']} queries have no relevant item and are left out."
    )
    print(
        f"Ranks are exact, from {figures['filter']} scores: "
        f"{figures['num_decided_in_float64']} queries certified in float64, "
        f"{figures['ties']['num_queries_with_ties']} with ties."
    )
    if "index" in figures:
        found = figures["index"]
        print(
            f"The index {found['factory']} takes {found['ms_per_query']:.3f} ms a query and "
            f"{found['bytes_per_vector']:.0f} bytes a vector."
        )
    for method, found in figures.get("rerank", {}).items():
        cost = f"{found['seconds']:.2f} s for {100 * found['gain']:+.2f} points of recall"
        print(f"{method}: {cost}")


def run(argv=None):
    """The program: `--queries` evaluates files, anything else a model."""
    argv = sys.argv if argv is None else argv
    define_flags()
    if not any(a.lstrip("-").split("=")[0] == "queries" for a in argv[1:]):
        from trainer import quiet

        quiet.import_tensorflow()  # before the model module does, with its banner
        trainer_config.run(main, argv)
    trainer_config.run_without_model(stored, argv)


if __name__ == "__main__":
    run()
