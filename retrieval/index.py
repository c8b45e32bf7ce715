"""A catalogue index on FAISS: build, add, remove, search, verify.

    python -m retrieval.index build    --store=DIR --output=INDEX [--factory=auto|FACTORY]
                                       [--recall=0.95] [--queries=STORE]
    python -m retrieval.index add      --store=DIR --index=INDEX
    python -m retrieval.index remove   --ids=ids.txt --index=INDEX
    python -m retrieval.index search   --store=QUERIES --index=INDEX [--category=NAME] [--k=10]
                                       [--page=FILE.html]
    python -m retrieval.index info | verify | versions --index=INDEX
    python -m retrieval.index rollback --to=NUMBER --index=INDEX

`build` chooses an index kind for the memory at hand and tunes it until it finds the asked share of
the nearest items. Every change makes a new version; the last three are kept.
"""

import json
import os
import sys

from absl import flags

from retrieval.catalogue import index
from retrieval.catalogue.index import Catalogue
from retrieval.embeddings import store
from retrieval.evaluation import inputs
from retrieval.ranking import vectors
from retrieval.reports import search_page
from trainer.config import did_you_mean

# What each action needs.
NEEDED = {
    "build": ("store", "output"),
    "add": ("store", "index"),
    "remove": ("ids", "index"),
    "search": ("store", "index"),
    "info": ("index",),
    "verify": ("index",),
    "versions": ("index",),
    "rollback": ("index", "to"),
}


def main(action, options):
    if action == "search":
        return _search(options)
    if action == "info":
        return print(json.dumps(index.manifest_of(options.index), indent=1))
    if action == "versions":
        return _versions(options.index)
    folder = options.output if action == "build" else options.index
    if action == "build":
        manifest = index.build(
            options.store,
            options.output,
            options.factory,
            similarity=options.similarity,
            memory=None if options.memory is None else options.memory * 2**30,
            recall=options.recall,
            on_disk=options.on_disk,
            queries=options.queries,
        )
        place = " on disk" if manifest["on_disk"] else ""
        print(f"{manifest['factory']}{place}: {manifest['why']}")
    elif action == "add":
        manifest = index.add(options.store, options.index)
    elif action == "remove":
        ids = inputs.read_lines(options.ids)
        if not ids:
            raise ValueError(f"{options.ids}: names no ids: there is nothing to remove")
        manifest = index.remove(ids, options.index)
    elif action == "rollback":
        manifest = index.rollback(options.index, options.to)
    else:
        manifest = Catalogue.open(options.index, everything=True).manifest
    print(f"{folder}: {_described(manifest)}")
    tuned = manifest["tuned"]
    if action == "build" and tuned["interval95"][0] < tuned["asked"]:
        print(f"warning: {_shortfall(manifest)}", file=sys.stderr)


def _described(manifest):
    tuned = manifest["tuned"]
    return (
        f"version {manifest['version']}, {manifest['count']} items, {manifest['removed']} removed, "
        f"{manifest['bytes_per_vector']:.0f} bytes per vector, recall@{tuned['k']} "
        f"{tuned['recall']:.3f} at {tuned['ms_per_query']:.2f} ms per query"
    )


def _shortfall(manifest):
    """Why an index misses the asked recall, and what to do."""
    tuned = manifest["tuned"]
    low, high = tuned["interval95"]
    if high >= tuned["asked"]:
        return (
            f"with {tuned['num_queries']} queries to tune with, the recall is {low:.3f} to "
            f"{high:.3f}, so {tuned['asked']:g} is not certain; give more with --queries"
        )
    return (
        f"{manifest['factory']} cannot reach recall {tuned['asked']:g} on these items, only "
        f"{tuned['recall']:.3f}; --factory=HNSW32 or IVF…,SQ8 can, --factory=Flat is exact"
    )


def _versions(folder):
    for manifest, current in index.history(folder):
        print(f"{'*' if current else ' '} {_described(manifest)}")


def _search(options):
    with Catalogue.open(options.index) as catalogue:
        weights = store.manifest_of(options.store)["source"].get("checkpoint_sha256")
        catalogue.check_weights(weights, options.store)
        queries = store.read(options.store)
        found = catalogue.find(queries.embeddings, options.k, options.category)
        items = catalogue.items
        for q, name in enumerate(queries.ids):
            results = [
                {"id": items["id"][r].as_py(), "product": items["product"][r].as_py(), "score": s}
                for s, r in zip(found.scores[q].tolist(), found.rows[q].tolist(), strict=True)
                if r >= 0
            ]
            print(json.dumps({"query": str(name), "results": results}, ensure_ascii=False))
        if options.page:
            title = f"Found in {options.index}"
            search_page.write(options.page, title, queries, items, found.scores, found.rows)
            print(f"images of what was found: {options.page}", file=sys.stderr)


def define_flags(values):
    def text(*given):
        flags.DEFINE_string(*given, flag_values=values)

    text("store", None, "Folder of a store of embeddings, as retrieval.embed writes it.")
    text("index", None, "Folder of an index.")
    text("output", None, "Folder of the index to build.")
    text("ids", None, "Text file of the ids to remove, one per line.")
    text("factory", "auto", "FAISS factory, or auto: the most exact kind that fits the memory.")
    flags.DEFINE_enum("similarity", "cosine", vectors.SIMILARITIES, "How near two embeddings are.",
                      flag_values=values)  # fmt: skip
    for name, default, doc in (
        ("memory", None, "GiB that the index may take; half of what is available if absent."),
        ("recall", 0.95, "Share of the 10 nearest items that a search must find."),
    ):
        flags.DEFINE_float(name, default, doc, flag_values=values)
    text("queries", None, "Folder of a store of real queries, to tune the recall with.")
    on_disk = "Keep the inverted lists of --factory in a file."
    flags.DEFINE_bool("on_disk", False, on_disk, flag_values=values)
    flags.DEFINE_integer("k", 10, "Results per query.", flag_values=values)
    text("category", None, "Search only items of this category.")
    text("page", None, "HTML file to write: the queries and what was found, as images.")
    flags.DEFINE_integer("to", None, "The version to go back to.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values)


def run(argv=None):
    options = flags.FlagValues()
    define_flags(options)
    try:
        rest = options(["retrieval.index", *(sys.argv[1:] if argv is None else argv)])[1:]
        if options.help:
            print(__doc__ + options.get_help())
            return
        action = rest[0] if rest else ""
        if action not in NEEDED or len(rest) > 1:
            known = f"give one action of {', '.join(NEEDED)}"
            raise ValueError(f"{' '.join(rest)!r}: {known}.{did_you_mean(action, NEEDED)}")
        if action == "build" and options.index:
            raise ValueError("--index: names the folder of an index; the kind is --factory")
        if action != "build" and options.output:
            raise ValueError(f"--output: {action} changes nothing else; name the index by --index")
        for name in NEEDED[action]:
            if getattr(options, name) is None:
                raise ValueError(f"{action} needs --{name}")
        main(action, options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the index is unchanged", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
