"""Tables of results on the terminal."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrieval.evaluation import identity
from retrieval.reports.comparison_page import TITLES, backward_table


def print_evaluation(results, prefix, evaluated=""):
    """Prints {title: evaluation}, the first one complete, whose files begin with `prefix`.

    The verdict is first, then the line `evaluated`, which names what was evaluated.
    """
    figures = next(iter(results.values())).figures
    if figures.verdict:
        _say(figures.verdict.sentence, "red" if figures.verdict.outcome == "worse" else "")
        if figures.verdict.warning:
            _say(figures.verdict.warning, "bold red")
    if evaluated:
        print(evaluated)
    step = getattr(figures.source, "step", None)
    ks = list(figures.recall)
    names = [*(f"recall@{k}" for k in ks), "MAP@R"]
    rows = []
    for title, result in results.items():
        of_title = result.figures
        rows.append([title, *_rates(of_title.recall.values(), of_title.map_at_r)])
        spans = [of_title.intervals[name.replace("MAP@R", "map@r")] for name in names]
        rows.append(["  95% interval", *(f"{low:.3f}-{high:.3f}" for low, high in spans)])
    index = figures.index
    if index:
        rows.append([f"index {index.factory}", *_rates(index.recall.values()), ""])
    for method, found in figures.rerank.items():
        rate = [] if found.map_at_r is None else [found.map_at_r]
        rows.append([f"with {method}", *_rates(found.recall.values(), *rate)])
    _print("Retrieval" if step is None else f"Retrieval at step {step}", ["", *names], rows, 110)
    print(
        f"{figures.num_queries} queries against {figures.num_catalogue} catalogue items; "
        f"{figures.num_unanswerable} queries have no relevant item and are excluded."
    )
    for sentence in identity.sentences(figures.excluded_by, figures.num_byte_equal_copies):
        print(sentence)
    print(f"Ranks are exact; {figures.ties.num_queries_with_ties} queries have ties.")
    if index:
        print(
            f"The index {index.factory} finds {100 * index.agreement:.1f}% of the {index.depth} "
            f"nearest items and loses {index.lost[ks[0]]:.3f} of recall@{ks[0]}, at "
            f"{index.ms_per_query:.3g} ms per query and {index.bytes_per_vector:.0f} bytes per "
            f"vector; exact search: {index.exact_ms_per_query:.3g} ms and "
            f"{index.exact_bytes_per_vector} bytes."
        )
    for method, found in figures.rerank.items():
        gain = f"{100 * found.gain:+.2f} points of recall@{ks[0]}"
        print(f"{method}: {found.seconds:.2g} s for {gain}")
    print(f"Wrote {prefix}-report.html, and beside it the figures as JSON, CSV and PNG.")


def print_comparison(result):
    """Prints a `paired.Comparison`; its warning goes to stderr."""
    rows = []
    _say(result.verdict)
    for name, d in result.difference.items():
        span = f"{d.interval[0]:+.3f} to {d.interval[1]:+.3f}"
        rows.append([TITLES.get(name, name), *_rates((d.a, d.b)), f"{d.difference:+.3f}", span])
    names = result.name_a, result.name_b
    title = f"{names[1]} against {names[0]}"
    _print(title, ["", *names, "difference", "95% interval"], rows)
    print(
        f"{result.num_queries:,} queries of {result.num_products:,} products in both; the first "
        f"result is right only in {names[1]} for {len(result.won):,}, only in {names[0]} for "
        f"{len(result.lost):,}."
    )
    if result.unlike:
        print(f"warning: {result.unlike}", file=sys.stderr)
    if result.backward:
        _print("Backward compatibility", *backward_table(result.backward))


def print_feedback(models):
    """Prints the result of `feedback.figures`."""
    names = [name for name in models[0] if name.startswith("recall@")]
    rows = []
    for one in models:
        spans = [one["interval95"][name] for name in names]
        rows.append([str(one["model"])[:12], *_rates(one[name] for name in names)])
        rows.append(["95% interval", *(f"{low:.3f}-{high:.3f}" for low, high in spans)])
    _print("Recall by user feedback, per model", ["", *names], rows)
    for one in models:
        print(
            f"{str(one['model'])[:12]}: {one['judgments']} judgments of {one['queries']} queries, "
            f"{one['good']} good. Queries without a judgment are not counted."
        )


def _rates(values, *more):
    return [f"{value:.3f}" for value in (*values, *more)]


def _say(sentence, style=""):
    """Prints a sentence in one line, in color on a terminal."""
    Console(soft_wrap=True).print(Text(sentence, style))


def _print(title, header, rows, width=100):
    table = Table(title=Text(title))
    for name in header:
        table.add_column(Text(name), justify="right" if name else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else width).print(table)
