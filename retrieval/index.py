"""A catalogue index on FAISS: build, add, remove, search, verify.

    python -m retrieval.index build  --store=DIR --output=INDEX [--index=auto|FACTORY]
    python -m retrieval.index add    --store=DIR --output=INDEX
    python -m retrieval.index remove --ids=ids.txt --output=INDEX
    python -m retrieval.index search --store=QUERIES --output=INDEX [--category=NAME] [--k=10]
                                     [--page=FILE.html]
    python -m retrieval.index info | verify --output=INDEX

INDEX/current names a version; INDEX/versions/<n> holds index.faiss, items.arrow, manifest.json and,
for an index above the memory, its inverted lists, lists.ivfdata. A version is published by one
rename of `current`, so that readers see the old or the new one, whole; the last three are kept.
Removed items stay in the FAISS file and are left out of every search, which works for all kinds of
index; `build` anew to be rid of them.

FAISS trusts the files it reads. Load only indexes that you built: the checksums tell damage and
mix-ups, not malice.
"""

import json
import os
import sys

from retrieval.catalogue.index import add, build, check_weights, find, load, manifest_of, remove
from retrieval.embeddings import store
from retrieval.evaluation import inputs
from retrieval.ranking import vectors
from retrieval.reports import search_page


def main(action, options):
    if action == "build":
        memory = None if options.memory is None else options.memory * 2**30
        manifest = build(
            options.store, options.output, options.index, similarity=options.similarity,
            memory=memory, recall=options.recall, on_disk=options.on_disk,
        )  # fmt: skip
        place = " on disk" if manifest["on_disk"] else ""
        print(f"{manifest['factory']}{place}: {manifest['why']}")
    elif action == "add":
        manifest = add(options.store, options.output)
    elif action == "remove":
        ids = inputs.read_lines(options.ids)
        if not ids:
            raise ValueError(f"{options.ids}: names no ids: there is nothing to remove")
        manifest = remove(ids, options.output)
    elif action == "search":
        _search(options)
        return
    elif action == "info":
        print(json.dumps(manifest_of(options.output), indent=1))
        return
    else:
        manifest = load(options.output, everything=True)[2]
    tuned = manifest["tuned"]
    print(
        f"{options.output}: version {manifest['version']}, {manifest['count']} items, "
        f"{manifest['removed']} removed, {manifest['bytes_per_vector']:.0f} bytes a vector, "
        f"recall@{tuned['k']} {tuned['recall']:.3f} at {tuned['ms_per_query']:.2f} ms a query"
    )
    if tuned["recall"] < tuned["asked"]:
        print(f"warning: the recall asked for, {tuned['asked']}, was not reached", file=sys.stderr)


def _search(options):
    loaded = load(options.output)
    check_weights(loaded[2], store.manifest_of(options.store), options.store)
    queries = store.read(options.store)
    scores, rows = find(loaded, queries.embeddings, options.k, options.category)
    items = loaded[1]
    for q, name in enumerate(queries.ids):
        results = [
            {"id": items["id"][r].as_py(), "product": items["product"][r].as_py(), "score": s}
            for s, r in zip(scores[q].tolist(), rows[q].tolist(), strict=True)
            if r >= 0
        ]
        print(json.dumps({"query": str(name), "results": results}, ensure_ascii=False))
    if options.page:
        search_page.write(options.page, f"Found in {options.output}", queries, items, scores, rows)
        print(f"pictures of what was found: {options.page}", file=sys.stderr)


def run(argv=None):
    import argparse

    parser = argparse.ArgumentParser(
        prog="retrieval.index", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = ("build", "add", "remove", "search", "info", "verify")
    parser.add_argument("action", choices=actions)
    parser.add_argument("--output", required=True, help="folder of the index")
    parser.add_argument("--store", help="store of embeddings, as retrieval.embed writes it")
    parser.add_argument("--ids", help="file of ids to remove, one a line")
    parser.add_argument("--index", default="auto", help="FAISS factory, or auto")
    parser.add_argument("--similarity", default="cosine", choices=vectors.SIMILARITIES)
    parser.add_argument("--memory", type=float, help="GiB the index may take (half of the free)")
    parser.add_argument("--recall", type=float, default=0.95, help="of the 10 true neighbours")
    parser.add_argument(
        "--on_disk", action="store_true", help="keep the lists of --index in a file"
    )
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--category", help="search its items only")
    parser.add_argument("--page", help="HTML file to write, the queries and finds as pictures")
    options = parser.parse_args(argv)
    needed = {"remove": "ids"}.get(options.action, "store")
    if options.action not in ("info", "verify") and not getattr(options, needed):
        parser.error(f"{options.action} needs --{needed}")
    try:
        main(options.action, options)
        sys.stdout.flush()
    except BrokenPipeError:  # who read the answers has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped: the index is what it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
