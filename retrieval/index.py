"""A catalogue index on FAISS: build, add, remove, search, verify.

    python -m retrieval.index build    --store=DIR --output=INDEX [--factory=auto|FACTORY]
                                       [--recall=0.95] [--queries=STORE]
    python -m retrieval.index add      --store=DIR --index=INDEX
    python -m retrieval.index remove   --ids=ids.txt --index=INDEX
    python -m retrieval.index search   --store=QUERIES --index=INDEX [--category=NAME] [--k=10]
                                       [--page=FILE.html]
    python -m retrieval.index info | verify | versions --index=INDEX
    python -m retrieval.index rollback --to=NUMBER --index=INDEX
    python -m retrieval.index train    --store=DIR --output=INDEX [--factory=IVF…] [--recall=0.95]
    python -m retrieval.index add      --store=DIR --index=INDEX --part=0/8 [--memory=4]
    python -m retrieval.index merge    --index=INDEX [--apart]
    python -m retrieval.index export   --index=INDEX --to=milvus:URI
    python -m retrieval.index export   --index=INDEX --to=parquet|npy|lance --output=PATH

For images, `retrieval.build` and `retrieval.search` are simpler. The actions here are for stored
embeddings, and to change an index.

`build` chooses an index kind that fits the available memory and tunes it to the requested recall.
Every change makes a new version; the last three are kept.

`train`, `add --part` and `merge` build an index with several processes, on any machines that see
the folders. Each part needs at most --memory, and the ids are those of a single index.

`export` writes the items and their vectors to files, or to Milvus (a folder, server or cluster),
which every program then searches as --index=milvus:URI.
"""

import functools
import json
import re
import sys

from absl import flags

from retrieval.catalogue import exports, index, milvus_export, parts
from retrieval.catalogue.index import Catalogue
from retrieval.embeddings import store
from retrieval.evaluation import inputs
from retrieval.ranking import vectors
from retrieval.reports import answers, search_page
from trainer import commandline, program
from trainer import config as trainer_config
from trainer.config import UserError, did_you_mean

# Flags that each action needs.
NEEDED = {
    "build": ("store", "output"),
    "add": ("store", "index"),
    "remove": ("ids", "index"),
    "search": ("store", "index"),
    "info": ("index",),
    "verify": ("index",),
    "versions": ("index",),
    "rollback": ("index", "to"),
    "train": ("store", "output"),
    "merge": ("index",),
    "export": ("index", "to"),
}
MAKING = ("build", "train", "export")  # write --output

# Optional flags of each action.
OPTIONAL = {
    "build": ("factory", "recall", "queries", "memory", "similarity", "on_disk"),
    "search": ("k", "category", "page"),
    "train": ("factory", "recall", "queries", "memory", "similarity"),
    "add": ("part", "memory"),
    "merge": ("store", "apart"),
    "export": ("output",),
}


def main(action, options):
    if action == "search":
        return _search(options)
    if action == "info":
        return print(json.dumps(index.manifest_of(options.index), indent=1))
    if action == "versions":
        return _versions(options.index)
    if action == "export":
        return _export(options)
    folder = options.output if action in MAKING else options.index
    memory = None if options.memory is None else options.memory * 2**30
    if action == "build":
        manifest = index.build(
            options.store,
            options.output,
            options.factory,
            similarity=options.similarity,
            memory=memory,
            recall=options.recall,
            on_disk=options.on_disk,
            queries=options.queries,
        )
        return answers.print_built(folder, manifest)
    elif action == "train":
        how = {"similarity": options.similarity, "recall": options.recall}
        about = parts.train(
            options.store, folder, options.factory, memory=memory, queries=options.queries, **how
        )
        return print(f"{folder}: {about['factory']} ({about['why']}), trained for parts")
    elif action == "add" and options.part:
        part, of = _part(options.part)
        made = parts.add(options.store, folder, part, of, memory=memory)
        rows = f"rows {made['start']} to {made['stop'] - 1}"
        return print(f"{folder}: part {part}/{of} is there, {rows}")
    elif action == "merge":
        manifest = parts.merge(folder, options.store, options.apart)
        return answers.print_built(folder, manifest)
    elif action == "add":
        manifest = index.add(options.store, options.index)
    elif action == "remove":
        ids = inputs.read_lines(options.ids)
        if not ids:
            raise ValueError(f"{options.ids}: names no ids: there is nothing to remove")
        manifest = index.remove(ids, options.index)
    elif action == "rollback":
        manifest = index.rollback(options.index, _number(options.to))
    else:
        manifest = Catalogue.open(options.index, everything=True).manifest
    print(f"{folder}: {answers.described(manifest)}")


def _export(options):
    to, output = options.to, options.output
    if to.startswith("milvus:"):
        if output:
            raise UserError(f"--output: --to={to} names the place already")
        return milvus_export.print_exported(to, milvus_export.export(options.index, to))
    if to not in exports.WRITERS:
        known = ", ".join(exports.WRITERS)
        raise UserError(f"--to={to}: takes milvus:URI, {known}.{did_you_mean(to, exports.WRITERS)}")
    if not output:
        raise UserError(f"--to={to}: needs --output, the file or folder to write")
    print(f"{output}: {exports.export(options.index, to, output)} items")


def _number(text):
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--to={text}: takes the number of a version")
    return int(text)


def _part(text):
    """(i, n) of --part=i/n."""
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
    part, of = map(int, found.groups()) if found else (0, 0)
    if part >= of:
        raise UserError(f"--part={text}: takes i/n with i from 0 to n - 1, such as 0/8")
    return part, of


def _versions(folder):
    for manifest, current in index.history(folder):
        print(f"{'*' if current else ' '} {answers.described(manifest)}")


def _search(options):
    with Catalogue.open(options.index) as catalogue:
        weights = store.manifest_of(options.store)["source"].get("checkpoint_sha256")
        catalogue.check_weights(weights, options.store)
        queries = store.read(options.store)
        found = catalogue.find(queries.embeddings, options.k, options.category)
        results = catalogue.results(found)
        for name, each in zip(queries.ids.tolist(), results, strict=True):
            answers.show(name, each)
        if options.page:
            shown = list(zip(queries.ids.tolist(), queries.paths.tolist(), results, strict=True))
            search_page.write(options.page, f"Found in {options.index}", shown)
            print(f"images of the results: {options.page}", file=sys.stderr)


def define_flags(values):
    text, path, decimal, number, choice, flag = commandline.definers(
        values, "string", "path", "float", "integer", "enum", "bool"
    )
    path("store", None, "Folder of a store of embeddings, as retrieval.embed writes it.")
    path("index", None, "Folder of an index.")
    path("output", None, "Folder of the index to build, or file or folder to export to.")
    text("factory", "auto", "FAISS factory, or auto: the most exact kind that fits into memory.")
    decimal(
        "recall", 0.95, "Fraction of the 10 nearest items that a search must find.", within="(0, 1]"
    )
    path("queries", None, "Folder of a store of real queries, to tune the recall with.")
    decimal(
        "memory",
        None,
        "GiB. build: limit of the index. train and add --part: limit of the process, including "
        "the names of its items. Default: half of the available memory.",
        within="(0, inf)",
    )
    choice("similarity", "cosine", vectors.SIMILARITIES, "Similarity of two embeddings.")
    number("k", 10, "Results per query.", lower_bound=1)
    text("category", None, "Search only items of this category.")
    path("page", None, "HTML file to write, with the images of queries and results.")
    path("ids", None, "Text file of the ids to remove, one per line.")
    text(
        "to", None, "rollback: the version to go back to; export: milvus:URI, parquet, npy, lance."
    )
    flag("on_disk", False, "Keep the inverted lists of --factory in a file instead of memory.")
    text("part", None, "i/n: add part i of n of the store, counted from 0, to a trained index.")
    flag("apart", False, "Do not merge the lists: a search then merges the results of each part.")


def _listed(names):
    return ", ".join(f"--{name}" for name in names)


def _program(options, action):
    if action not in NEEDED:
        known = f"give one action of {', '.join(NEEDED)}"
        raise UserError(f"{action!r}: {known}.{did_you_mean(action, NEEDED)}")
    if action == "train" and options.index:
        raise UserError("--index: train writes --output")
    if action == "add" and options["memory"].present and not options.part:
        raise UserError("--memory has no effect: add takes it with --part")
    if action == "build" and options.index:
        raise UserError(
            f"--index={options.index}: build writes --output; a FAISS factory is now "
            f"--factory={options.index}"
        )
    if action not in MAKING and options.output:
        raise UserError(f"--output: {action} writes no new folder; the index is now --index")
    taken = (*NEEDED[action], *OPTIONAL.get(action, ()))
    idle = {options[name].name for name in options} - {*taken, "output", "index"}  # see above
    commandline.refuse_idle(options, sorted(idle), f"{action} takes {_listed(taken)}")
    for name in NEEDED[action]:
        if getattr(options, name) is None:
            raise UserError(f"{action} needs --{name}")
    with trainer_config.user_errors(options.index or options.output):
        main(action, options)


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run_without_model(
        functools.partial(_program, options),
        argv,
        "Interrupted; the index is unchanged.",
        arguments=("ACTION",),
        flag_values=options,
    )


if __name__ == "__main__":
    run()
