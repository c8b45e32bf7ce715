"""Evaluates an embedding against a catalogue: figures, plots and a report.

    python -m retrieval.eval --model=models.simple [--checkpoint=last] [--any.config.key=value]

This restores a checkpoint of the experiment (the best by default), embeds the model's
`retrieval_query` and `retrieval_index` datasets and writes to `<experiment>/analysis`. The
configuration is the experiment's config.json; flags override it. A model may declare
`evaluation.precision@k.num_to_retrieve` (the default of --top), `evaluation.precision@k.plot` and
`evaluation.histogram` (false: that plot is not drawn).

    python -m retrieval.eval --queries=q.npy --query_labels=q.txt [--query_ids=q_ids.txt]
        [--catalogue=c.npy --catalogue_labels=c.txt [--catalogue_ids=c_ids.txt]] --output=DIR

This evaluates stored embeddings from any program, without TensorFlow. Stores of retrieval.embed
need no text files. The catalogue may also be an index (its vectors are decoded and searched
exactly).
Labels: one product id per line. Ids: one item id per line; equal ids are the same image. Without a
catalogue, each query is searched among the other queries.

    python -m retrieval.eval --text_queries=CSV --model=models.ranker
    python -m retrieval.eval --text_queries=CSV --catalogue=INDEX --output=DIR

These search the catalogue by the texts of a CSV (columns text and label). The model, or the model
in the index, must have a text tower.

    python -m retrieval.eval --feedback=FILE

This computes recall from the judgments that the search page recorded in FILE.
"""

import functools
import os
import sys

from absl import flags

from retrieval import api, metrics
from retrieval.catalogue.opened import is_milvus
from retrieval.evaluation import feedback, figures, inputs, rerank, suite
from retrieval.ranking import counting, kernels
from retrieval.reports import outputs, plots, terminal
from trainer import commandline, program
from trainer import config as trainer_config
from trainer.config import UserError

# The plots, and the config key with which a model disables each.
PLOTS = {"recall_at_k": "evaluation.precision@k.plot", "histogram": "evaluation.histogram"}
# Flags of stored embeddings, of a model, and of both.
OF_FILES = (
    *("queries", "query_labels", "query_ids", "query_categories"),
    *("catalogue", "catalogue_labels", "catalogue_ids", "catalogue_categories"),
)
OF_MODEL = ("model", "checkpoint")
HOW = ("output", "index", "factory", "similarity", "ks", "top", "rerank", "threads", "filter")
SIDES = ("query", "catalogue")
RENAMED = {"where": "--dataset.test_where, a key of the model"}


def define_flags(values):
    text, path, number, many, choice = commandline.definers(
        values, "string", "path", "integer", "list", "enum"
    )
    text("model", None, "Model module, such as models.simple.", short_name="m")
    path("checkpoint", None, "best, last, or a path; default: the best on validation if the run "
         "keeps it, otherwise the last.")  # fmt: skip
    path("queries", None, "Evaluate stored embeddings instead: a .npy file of [queries, "
         "dimensions], or the folder of a store that retrieval.embed wrote.")  # fmt: skip
    path("catalogue", None, "What to search: a .npy file of [items, dimensions], the folder of a "
         "store or of an index; default: the queries.")  # fmt: skip
    path("output", None, "Folder for the results; default for a model: <experiment>/analysis.")
    path("index", None, "Folder of an index of the catalogue, built by retrieval.index: "
         "also report its loss of recall against exact search.")  # fmt: skip
    text("factory", None, "Like --index, for an index to build now: a FAISS factory, or auto.")
    choice("similarity", "cosine", metrics.SIMILARITIES, "Similarity of two embeddings.")
    many("ks", list(map(str, metrics.KS)), "Cut-offs k of recall@k and precision@k.")
    number("top", 20, "Retrieved items to list per query.", lower_bound=plots.TOP)
    many("rerank", [], f"Also evaluate any of {', '.join(rerank.METHODS)} (cosine only).")
    number("threads", 0, "Number of threads (0: one per core).", lower_bound=0)
    choice("filter", "auto", kernels.FILTERS, "Number format in which scores are computed first: "
           "auto is the fastest on this processor. Ranks are always exact.")  # fmt: skip
    path("feedback", None, "JSONL file of judgments from `prototrain serve --feedback`.")
    path("text_queries", None, "CSV of text,label: queries by words, for --model or the index at "
         "--catalogue; the model needs a text tower.")  # fmt: skip
    path("query_labels", None, "Text file of the queries' product ids, one per line.")
    path("query_ids", None, "Text file of the queries' item ids, one per line.")
    path("query_categories", None, "Text file of the queries' categories, one per line.")
    path("catalogue_labels", None, "Text file of the catalogue's product ids, one per line.")
    path("catalogue_ids", None, "Text file of the catalogue's item ids, one per line.")
    path("catalogue_categories", None, "Text file of the catalogue's categories, one per line.")


def main(options, model, given, rest):
    """The program: `--queries` evaluates files, anything else a model."""
    commandline.no_arguments(rest)
    if options.feedback:
        idle = (name for name in (*OF_FILES, *OF_MODEL, *HOW, "text_queries") if name != "ks")
        commandline.refuse_idle(options, idle, "--feedback takes --ks")
        return judged(options)
    if options.queries:
        stray = (*OF_MODEL, "text_queries")
        commandline.refuse_idle(options, stray, "--queries evaluates without a model")
        return stored(options)
    if options.text_queries and options.catalogue:
        return stored_texts(options)
    commandline.refuse_idle(options, OF_FILES, "it goes with --queries, a file or a store")
    if model is None:
        raise UserError("Give a model (--model=models.simple) or stored embeddings (--queries=…).")
    from trainer import experiment

    folder, checkpoint = experiment.locate(model, given, options.checkpoint)
    top = "evaluation.precision@k.num_to_retrieve"
    if top in model.config and not options["top"].present:
        options.top = max(model.config[top], plots.TOP)
    output = _folder(options.output or os.path.join(folder, "analysis"))
    drawn = [n for n, key in PLOTS.items() if key not in model.config or model.config[key]]
    with trainer_config.user_errors(output):
        evaluating = _options(options) | {"drawn": drawn, "threads": options.threads}
        if options.text_queries:
            asked = options.text_queries
            results, prefix = api.evaluate_texts(model, checkpoint, output, asked, **evaluating)
        else:
            results, prefix = api.evaluate_model(model, checkpoint, output, **evaluating)
    terminal.print_evaluation(results, prefix, experiment.describe(checkpoint))
    return 0


def stored(options):
    """Evaluates embeddings from files."""
    if not options.output:
        raise UserError("--output=DIR: name the folder for the results")
    paths = [options.queries, options.catalogue]
    with trainer_config.user_errors(options.output):
        queries, catalogue = _load(options, paths)
        made = {inputs.origin(path)["checkpoint_sha256"] for path in paths if path}
        if len(made - {None}) > 1:
            print(
                f"warning: {paths[0]} and {paths[1]} were embedded with different weights: their "
                "embeddings can be compared only if the models were trained for it",
                file=sys.stderr,
            )
        result = suite.evaluate_files(queries, catalogue, paths, **_options(options))
        prefix = os.path.join(_folder(options.output), "embeddings")
        items = queries if catalogue is None else catalogue
        outputs.write_stored(prefix, result, queries, items)
    terminal.print_evaluation({"embeddings": result}, prefix)
    return 0


def stored_texts(options):
    """Evaluates texts against an index, with the model in it."""
    stray = (*(name for name in OF_FILES if name != "catalogue"), *OF_MODEL)
    commandline.refuse_idle(options, stray, "--text_queries with --catalogue=INDEX takes none")
    if not options.output:
        raise UserError("--output=DIR: name the folder for the results")
    if not inputs.is_index(options.catalogue):
        raise UserError(
            f"--catalogue={options.catalogue}: is not an index, which contains the model for texts"
        )
    from retrieval.catalogue.opened import Catalogue
    from retrieval.embeddings import texts

    with trainer_config.user_errors(options.output):
        texts.read_queries(options.text_queries)
        with Catalogue.open(options.catalogue) as opened, opened.text_embedder() as embedder:
            queries = texts.embed_queries(options.text_queries, embedder)
        catalogue = inputs.load(options.catalogue, name="catalogue")
        paths = [options.text_queries, options.catalogue]
        source = figures.Files(queries=paths[0], catalogue=paths[1], made_by=[])
        results = suite.evaluate(queries, catalogue, source=source, **_options(options))
        prefix = os.path.join(_folder(options.output), "texts")
        (result,) = results.values()
        outputs.write_stored(prefix, result, queries, catalogue)
    terminal.print_evaluation({"texts": result}, prefix)
    return 0


def judged(options):
    """Prints the recall from judgments of the search page."""
    with trainer_config.user_errors(options.feedback):
        ks = _options(options)["ks"]
        found = feedback.figures(feedback.read(options.feedback), ks)
    terminal.print_feedback(found)
    return 0


def _load(options, paths):
    """Reads the queries and the catalogue; None if queries are searched among themselves."""
    asking, items = (
        [getattr(options, f"{side}_{name}") for name in ("labels", "ids", "categories")]
        for side in SIDES
    )
    if not paths[1] and any(items):
        raise ValueError("--catalogue_labels, _ids and _categories need --catalogue")
    queries, catalogue = inputs.load_pair(
        (paths[0], *asking), (paths[1], *items) if paths[1] else None
    )
    return queries, None if catalogue is queries else catalogue


def _options(options):
    """The flags that say how to evaluate, as arguments of `suite.evaluate`."""
    given = f"--ks={','.join(options.ks)}"
    try:
        ks = tuple(int(k) for k in options.ks)
    except ValueError:
        raise ValueError(f"{given}: takes whole numbers") from None
    if not ks or min(ks) < 1:
        raise ValueError(f"{given}: takes whole numbers from 1 on")
    if options.index and options.factory:
        raise ValueError("--index and --factory: give one of them")
    if options.index and not (os.path.isdir(options.index) or is_milvus(options.index)):
        raise ValueError(
            f"--index={options.index}: there is no such folder; a FAISS factory is now "
            f"--factory={options.index}"
        )
    return {
        "similarity": options.similarity,
        "ks": ks,
        "top": options.top,
        "filter": options.filter,
        "threads": options.threads or counting.cores(),
        "index": options.index or options.factory,
        "reranking": options.rerank,
    }


def _folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={path}: {error.strerror}") from None
    return path


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run(
        functools.partial(main, options),
        argv,
        "Interrupted; files that were not complete were not written.",
        flag_values=options,
        model_needed=False,
        renamed=RENAMED,
    )


if __name__ == "__main__":
    run()
