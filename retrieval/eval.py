"""Evaluates an embedding against a catalogue: figures, plots and a report.

    python -m retrieval.eval --model=models.simple [--checkpoint=PREFIX] [--any.config.key=value]

restores a checkpoint of the experiment (the newest by default), embeds the model's
`retrieval_query` and `retrieval_index` data sets and writes to `<experiment>/analysis`. The
experiment's own config.json is the configuration; flags given here override it. A model may declare
`evaluation.precision@k.num_to_retrieve` (the default of --top), `evaluation.precision@k.plot` and
`evaluation.histogram` (false: that plot is not drawn).

    python -m retrieval.eval --queries=q.npy --query_labels=q.txt [--query_ids=q_ids.txt]
        [--catalogue=c.npy --catalogue_labels=c.txt [--catalogue_ids=c_ids.txt]] --output=DIR

evaluates stored embeddings of any origin, without TensorFlow. A store that retrieval.embed wrote
needs no text files, and neither does an index of retrieval.index as the catalogue (its vectors are
searched exactly, as the index keeps them). Labels: one product id per line. Ids: one item id per
line; equal ids are the same image. Without a catalogue the queries are searched among themselves.
"""

import contextlib
import os
import sys

from absl import flags

from retrieval import metrics
from retrieval.evaluation import figures, inputs, rerank, suite
from retrieval.ranking import counting, kernels
from retrieval.reports import outputs, plots, terminal
from trainer import config as trainer_config

# The plots, and the config key by which a model can do without one.
PLOTS = {"recall_at_k": "evaluation.precision@k.plot", "histogram": "evaluation.histogram"}
# Flags for stored embeddings that need --queries.
STORED = (
    *("query_labels", "query_ids", "query_categories"),
    *("catalogue", "catalogue_labels", "catalogue_ids", "catalogue_categories"),
)


def define_flags():
    text, number, choice = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
    text("model", None, "Model module, such as models.simple.", short_name="m")
    text("checkpoint", None, "Checkpoint prefix; the experiment's newest by default.")
    text("queries", None, "Evaluate stored embeddings instead: a .npy file of [queries, "
         "dimensions], or the folder of a store that retrieval.embed wrote.")  # fmt: skip
    text("query_labels", None, "Text file of the queries' product ids, one per line.")
    text("query_ids", None, "Text file of their item ids, one per line.")
    text("query_categories", None, "Text file of their categories, one per line.")
    text("catalogue", None, "What to search: a .npy file of [items, dimensions], the folder of a "
         "store or of an index; the queries themselves by default.")  # fmt: skip
    text("catalogue_labels", None, "Text file of the catalogue's product ids, one per line.")
    text("catalogue_ids", None, "Text file of its item ids, one per line.")
    text("catalogue_categories", None, "Text file of its categories, one per line.")
    text("output", None, "Folder for the results; <experiment>/analysis for a model.")
    choice("similarity", "cosine", metrics.SIMILARITIES, "How near two embeddings are.")
    flags.DEFINE_list("ks", list(map(str, metrics.KS)), "Cut-offs k of recall@k and precision@k.")
    number("top", 20, "Retrieved items to list per query.", lower_bound=plots.TOP)
    text("index", None, "Also report what an index loses against exact search: a FAISS factory, "
         "auto, or the folder of an index that retrieval.index built.")  # fmt: skip
    flags.DEFINE_list(
        "rerank", [], f"Also evaluate any of {', '.join(rerank.METHODS)} (cosine only)."
    )
    choice("filter", "auto", kernels.FILTERS, "Precision that scores are computed in first: "
           "auto takes the fastest on this processor. Ranks are exact with any.")  # fmt: skip
    number("threads", 0, "Number of threads (0: one per core).", lower_bound=0)


def main(model, given, rest):
    """Evaluates `model`, a module; `given` are the config keys set on the command line."""
    if rest:
        raise trainer_config.UserError(f"unexpected argument {rest[0]!r}")
    options = flags.FLAGS
    stray = [name for name in STORED if getattr(options, name)]
    if stray:
        raise trainer_config.UserError(f"--{stray[0]} needs --queries, a file or a store")
    from retrieval.embeddings import embedder
    from retrieval.embeddings import images as embedded_images
    from trainer import checkpoints, experiment

    folder, checkpoint = experiment.locate(model, given, options.checkpoint)
    top = "evaluation.precision@k.num_to_retrieve"
    if top in model.config and not options["top"].present:
        options.top = max(model.config[top], plots.TOP)
    step = checkpoints.step_of(checkpoint)
    output = _folder(options.output or os.path.join(folder, "analysis"))
    prefix = os.path.join(output, f"model-{step}")
    names = {"queries": "retrieval_query", "catalogue": "retrieval_index"}

    def images(which, ids):
        return embedded_images.wanted_of(model, names[which], ids)

    with _errors(prefix):
        evaluating = _options() | {"title": "this model", "with_baselines": True}
        wanted = tuple(names.values())
        found = embedder.embed_datasets(model, wanted, checkpoint, threads=options.threads)
        queries, catalogue = (found[name] for name in wanted)
        source = figures.Source(checkpoint=checkpoint, step=step, model=model.__name__)
        results = suite.evaluate(queries, catalogue, source=source, **evaluating)
        kept = [n for n, key in PLOTS.items() if key not in model.config or model.config[key]]
        outputs.write(prefix, results, queries, catalogue, images, kept)
    terminal.print_evaluation(results, prefix)
    return 0


def stored():
    """Evaluates embeddings from files."""
    options = flags.FLAGS
    if not options.output:
        raise trainer_config.UserError("--output=DIR: name the folder for the results")
    for name in ("model", "checkpoint"):
        if getattr(options, name):
            raise trainer_config.UserError(f"--{name} and --queries: give one of them")
    paths = [options.queries, options.catalogue]
    with _errors(options.output):
        queries, catalogue = _load(paths)
        made = {inputs.origin(path)["checkpoint_sha256"] for path in paths if path}
        if len(made - {None}) > 1:
            print(
                f"warning: {paths[0]} and {paths[1]} were embedded with different weights: their "
                "embeddings can be compared only if the models were trained for that",
                file=sys.stderr,
            )
        result = suite.evaluate_files(queries, catalogue, paths, **_options())
        prefix = os.path.join(_folder(options.output), "embeddings")
        items = queries if catalogue is None else catalogue
        outputs.write_stored(prefix, result, queries, items)
    terminal.print_evaluation({"embeddings": result}, prefix)


def _load(paths):
    """Reads the queries and the catalogue; None for the queries against themselves."""
    asking, items = (
        [getattr(flags.FLAGS, f"{side}_{name}") for name in ("labels", "ids", "categories")]
        for side in ("query", "catalogue")
    )
    if not paths[1] and any(items):
        raise ValueError("--catalogue_labels, _ids and _categories need --catalogue")
    queries, catalogue = inputs.load_pair(
        (paths[0], *asking), (paths[1], *items) if paths[1] else None
    )
    return queries, None if catalogue is queries else catalogue


def _options():
    """The flags that say how to evaluate, as arguments of `suite.evaluate`."""
    options = flags.FLAGS
    given = f"--ks={','.join(options.ks)}"
    try:
        ks = tuple(int(k) for k in options.ks)
    except ValueError:
        raise ValueError(f"{given}: takes whole numbers") from None
    if not ks or min(ks) < 1:
        raise ValueError(f"{given}: takes whole numbers from 1 on")
    return {
        "similarity": options.similarity,
        "ks": ks,
        "top": options.top,
        "filter": options.filter,
        "threads": options.threads or counting.cores(),
        "index": options.index,
        "reranking": options.rerank,
    }


@contextlib.contextmanager
def _errors(place):
    """Turns errors that the user can fix into one line."""
    try:
        yield
    except ValueError as error:
        raise trainer_config.UserError(str(error)) from error
    except OSError as error:
        reason = error.strerror or error
        raise trainer_config.UserError(
            f"{error.filename or place}: cannot be read or written: {reason}"
        ) from error


def _folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise trainer_config.UserError(f"--output={path}: {error.strerror}") from None
    return path


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
        print("Interrupted; files that were not complete were not written.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
