"""Prints search results and the properties of an index: tables for people, JSON for programs."""

import json
import sys


def show(query, results):
    """Prints the answer to one query.

    Args:
      query: name of the query.
      results: as `Catalogue.results` gives them for a query.
    """
    if not sys.stdout.isatty():
        print(json.dumps({"query": query, "results": results}, ensure_ascii=False), flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from retrieval.reports.page import visible

    table = Table(title=Text(visible(query)), title_justify="left", box=None)
    for name in ("", "score", "product", "category", "id"):
        table.add_column(name, justify="right" if name in ("", "score") else "left")
    for item in results:
        texts = (Text(visible(item[name])) for name in ("product", "category", "id"))
        table.add_row(str(item["rank"]), f"{item['score']:.3f}", *texts)
    Console().print(table if results else Text(f"{visible(query)}: no match"))


def print_built(folder, manifest):
    """Prints the result of `catalogue.index.build`; warns on stderr if it misses the recall."""
    place = " on disk" if manifest["on_disk"] else ""
    print(f"{manifest['factory']}{place}: {manifest['why']}")
    print(f"{folder}: {described(manifest)}")
    tuned = manifest["tuned"]
    if tuned["interval95"][0] < tuned["asked"]:
        print(f"warning: {_shortfall(manifest)}", file=sys.stderr)


def described(manifest):
    """Returns one line about a version of an index."""
    tuned = manifest["tuned"]
    return (
        f"version {manifest['version']}, {manifest['count']} items, {manifest['removed']} removed, "
        f"{manifest['bytes_per_vector']:.0f} bytes per vector, recall@{tuned['k']} "
        f"{tuned['recall']:.3f} at {tuned['ms_per_query']:.2f} ms per query"
    )


def _shortfall(manifest):
    """Why an index misses the requested recall, and what to do."""
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
