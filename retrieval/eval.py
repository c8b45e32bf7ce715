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
needs no text files, nor does an index of retrieval.index as the catalogue (of which the vectors are
searched exactly, as it keeps them). Labels: one product id per line; ids: one item id per line,
equal ids are the same image. Without a catalogue the queries are searched among themselves.
"""

import os
import sys

import faiss
from absl import flags

from retrieval import metrics
from retrieval.evaluation import baselines, identity, rerank
from retrieval.evaluation import figures as evaluation
from retrieval.ranking import counting, kernels
from retrieval.reports import outputs, plots
from trainer import config as trainer_config

# What is drawn, and the key by which a model can do without.
DRAWINGS = {"recall_at_k": "evaluation.precision@k.plot", "histogram": "evaluation.histogram"}
# Flags that say something of stored embeddings, beside --queries.
STORED = (
    *("query_labels", "query_ids", "query_categories"),
    *("catalogue", "catalogue_labels", "catalogue_ids", "catalogue_categories"),
)


def define_flags():
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("model", None, "Model module, such as models.simple.", short_name="m")
    text("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    text("queries", None, "Evaluate stored embeddings instead: a .npy file of [queries, "
         "dimensions], or the folder of a store that retrieval.embed wrote.")  # fmt: skip
    text("query_labels", None, "Text file of the queries' product ids, one a line.")
    text("query_ids", None, "Text file of their item ids, one a line.")
    text("query_categories", None, "Text file of their categories, one a line.")
    text("catalogue", None, "What to search: a .npy file of [items, dimensions], the folder of a "
         "store or of an index; the queries themselves if absent.")  # fmt: skip
    text("catalogue_labels", None, "Text file of the catalogue's product ids, one a line.")
    text("catalogue_ids", None, "Text file of its item ids, one a line.")
    text("catalogue_categories", None, "Text file of its categories, one a line.")
    text("output", None, "Folder for the results; <experiment>/analysis for a model.")
    choice("similarity", "cosine", metrics.SIMILARITIES, "How near two embeddings are.")
    flags.DEFINE_list("ks", list(map(str, metrics.KS)), "Cut-offs k of recall@k and precision@k.")
    number("top", 20, "Retrieved items to list for each query.", lower_bound=plots.TOP)
    text("index", None, "Also report what an index loses against exact search: a FAISS factory, "
         "auto, or the folder of one that retrieval.index built of the catalogue.")  # fmt: skip
    flags.DEFINE_list("rerank", [], f"Also try any of {', '.join(rerank.METHODS)} (cosine only).")
    choice("filter", "auto", kernels.FILTERS, "What scores are computed in first: auto takes the "
           "faster on this processor; ranks are exact with any.")  # fmt: skip
    number("threads", 0, "Threads to compute with (0: all cores).", lower_bound=0)


def main(model, given, rest):
    """Evaluates `model` (a module); `given`: the config keys that the command line set."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    options = flags.FLAGS
    stray = [name for name in STORED if getattr(options, name)]
    if stray:
        raise trainer_config.UserError(f"--{stray[0]} needs --queries, a file or a store")
    from retrieval.embeddings import embedder
    from trainer import checkpoints, experiment

    folder, checkpoint = experiment.locate(model, given, options.checkpoint)
    top = "evaluation.precision@k.num_to_retrieve"
    if top in model.config and not options["top"].present:
        options.top = max(model.config[top], plots.TOP)
    step = checkpoints.step_of(checkpoint)
    output = _folder(options.output or os.path.join(folder, "analysis"))
    prefix = os.path.join(output, f"model-{step}")
    names = ("retrieval_query", "retrieval_index")
    try:
        found = embedder.embed_datasets(model, names, checkpoint, threads=options.threads)
        queries, catalogue = (found[name] for name in names)
        results = {"this model": _evaluate(queries, catalogue, options)}
        for name, baseline, similarity in (
            ("raw pixels", baselines.raw_pixels, "cosine"),
            ("colour histogram", baselines.color_histogram, "cosine"),
        ):
            results[name] = _evaluate(baseline(queries), baseline(catalogue), options, similarity)
        more = extras(queries, catalogue, results["this model"], options)
        figures = {"checkpoint": checkpoint, "step": step, "model": model.__name__}
        figures |= results["this model"].figures | more
        figures["raw_pixels"] = results["raw pixels"].figures
        figures["color_histogram"] = results["colour histogram"].figures

        def images(which, ids):
            return embedder.pictures_of(model, names[which == "catalogue"], ids)

        kept = [n for n, key in DRAWINGS.items() if key not in model.config or model.config[key]]
        outputs.write(prefix, figures, results, queries, catalogue, images, kept)
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    except OSError as error:
        raise trainer_config.UserError(_unwritten(prefix, error)) from error
    print_table(figures, results, prefix)
    return 0


def stored():
    """Evaluates embeddings from files."""
    from retrieval.evaluation import inputs as files_of

    options, kinds = flags.FLAGS, ("labels", "ids", "categories")
    if not options.output:
        raise trainer_config.UserError("--output=DIR: name the folder for the results")
    for name in ("model", "checkpoint"):
        if getattr(options, name):
            raise trainer_config.UserError(f"--{name} and --queries: give one of them")
    try:
        asking, items = (
            [getattr(options, name), *(getattr(options, f"{side}_{kind}") for kind in kinds)]
            for name, side in (("queries", "query"), ("catalogue", "catalogue"))
        )
        queries, catalogue = files_of.load_pair(asking, items if options.catalogue else None)
        if options.catalogue:
            made = {
                files_of.origin(path)["checkpoint_sha256"]
                for path in (options.queries, options.catalogue)
            }
            if len(made - {None}) > 1:
                print(
                    f"warning: {options.queries} and {options.catalogue} were embedded with "
                    "different weights: their embeddings compare only if the models were made so",
                    file=sys.stderr,
                )
        elif options.catalogue_labels or options.catalogue_ids or options.catalogue_categories:
            raise ValueError("--catalogue_labels, _ids and _categories need --catalogue")
        result = _evaluate(queries, catalogue, options)
        more = extras(queries, catalogue, result, options)
        figures = {"queries": options.queries, "catalogue": options.catalogue}
        figures["made_by"] = files_of.made_by([options.queries, options.catalogue])
        figures |= result.figures | more
        prefix = os.path.join(_folder(options.output), "embeddings")
        outputs.write_stored(prefix, figures, result, queries, catalogue)
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    except OSError as error:
        raise trainer_config.UserError(_unwritten(options.output, error)) from error
    print_table(figures, {"embeddings": result}, prefix)


def _evaluate(queries, catalogue, options, similarity=None):
    try:
        ks = tuple(int(k) for k in options.ks)
    except ValueError:
        raise ValueError(f"--ks={','.join(options.ks)}: takes whole numbers") from None
    if not ks or min(ks) < 1:
        raise ValueError(f"--ks={','.join(options.ks)}: takes whole numbers from 1 on")
    # FAISS would take a thread for every core, whatever was asked for.
    faiss.omp_set_num_threads(options.threads or counting.cores())
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
        from retrieval.evaluation import index_loss

        more["index"] = index_loss.losses(queries, catalogue, result, options.index)
    if options.rerank:
        if options.similarity != "cosine":
            raise trainer_config.UserError("--rerank works with --similarity=cosine only")
        more["rerank"] = rerank.compare(queries, catalogue, result, options.rerank)
    return more


def _unwritten(place, error):
    return f"{error.filename or place}: cannot be read or written: {error.strerror or error}"


def _folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise trainer_config.UserError(f"--output={path}: {error.strerror}") from None
    return path


def print_table(figures, results, prefix):
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
    for sentence in identity.sentences(figures["excluded_by"], figures["num_byte_equal_copies"]):
        print(sentence)
    print(
        f"Ranks are exact, from {figures['filter']} scores: "
        f"{figures['num_decided_in_float64']} queries certified in float64, "
        f"{figures['ties']['num_queries_with_ties']} with ties."
    )
    first = ks[0]
    if "index" in figures:
        found = figures["index"]
        print(
            f"The index {found['factory']} finds {100 * found['agreement']:.1f}% of the "
            f"{found['depth']} nearest items and loses {found['lost'][first]:.3f} of "
            f"recall@{first}, at {found['ms_per_query']:.3g} ms a query and "
            f"{found['bytes_per_vector']:.0f} bytes a vector; exact search: "
            f"{found['exact_ms_per_query']:.3g} ms and {found['exact_bytes_per_vector']} bytes."
        )
    for method, found in figures.get("rerank", {}).items():
        print(
            f"{method}: {found['seconds']:.2g} s for {100 * found['gain']:+.2f} points of "
            f"recall@{first}"
        )
    print(f"Wrote {prefix}-report.html and, beside it, its figures as JSON, CSV and PNG.")


def run(argv=None):
    """The program: `--queries` evaluates files, anything else a model."""
    argv = sys.argv if argv is None else argv
    define_flags()
    try:
        if not any(a.lstrip("-").split("=")[0] == "queries" for a in argv[1:]):
            from trainer import quiet

            quiet.import_tensorflow()  # before the model module does, with its banner
            trainer_config.run(main, argv)
        trainer_config.run_without_model(stored, argv)
    except KeyboardInterrupt:
        print("stopped: what was not written yet is lost", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
