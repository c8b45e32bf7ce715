"""The page that compares two evaluations."""

import numpy as np

from retrieval.evaluation.paired import verdict
from retrieval.reports import page
from retrieval.reports.selection import SHOWN

COLUMNS = {
    "old": "Old queries, old catalogue",
    "new_on_old": "New queries, old catalogue",
    "new": "New queries, new catalogue",
    "share_of_gain": "Share of the gain",
}


def write_page(path, result, shown, lists, ranks, images):
    """Writes the comparison as one HTML page.

    shown: {'won', 'lost': query ids}. lists: {'A', 'B': {query id: entry of …-top_retrieved.json}}.
    ranks: {'A', 'B': {query id: rank of the first right item}}. images: {id: uint8 image}, as many
    as there are.
    """
    test = result["mcnemar"]
    rows = [
        [
            page.text(title.upper() if title in ("map@r", "mrr") else title),
            *(f"{d['a']:.3f}", f"{d['b']:.3f}", f"<b>{d['difference']:+.3f}</b>"),
            f"<span class=dim>{d['interval95'][0]:+.3f} to {d['interval95'][1]:+.3f}</span>",
        ]
        for title, d in result["difference"].items()
    ]
    only = "".join(
        f" {result[f'only_in_{side}']:,} more are in {side.upper()} only and count for neither."
        for side in "ab"
        if result[f"only_in_{side}"]
    )
    sections = [
        (
            "Summary",
            f"<p>{verdict(result)} {page.text(result['unlike'])}</p>"
            + page.table(["", "A", "B", "B - A", "95% interval"], rows)
            + f"<p>{result['num_queries']:,} queries that both evaluations can answer, paired by "
            f"id.{only} The intervals draw whole products. The first result is right in B alone "
            f"for {test['won']:,} queries (won) and in A alone for {test['lost']:,} (lost); were "
            "both models equally good, a split as uneven would come by chance with probability "
            f"{test['p_value']:.2g} (McNemar's exact test, which takes queries of one product as "
            "independent; the intervals do not).</p>",
        ),
        ("Backward compatibility", _backward(result["backward"]) if "backward" in result else ""),
    ]
    for title, names in shown.items():
        rows = []
        for name in names:
            for side in "AB":
                entry = lists[side][name]
                note = f"{side}: right item at rank {ranks[side][name]}"
                cells = [page.picture(images, name, entry["product"], "query", note)]
                cells += [
                    page.picture(
                        *(images, item["media"], item["product"]),
                        *("right" if item["relevant"] else "wrong", f"{item['score']:.3f}"),
                    )
                    for item in entry["results"][:SHOWN]
                ]
                rows.append(page.row(cells))
        note = (
            f"<p>The first result is right in {'B' if title == 'won' else 'A'} only. Above what A "
            f"retrieved, below B; {len(names)} of {len(result[title]):,}, one a product, the "
            "greatest change of rank first. compare.json lists all.</p>"
        )
        sections.append((f"Queries {title} by B", note + "".join(rows) if rows else ""))
    head = f"<p class=sub>A: {page.text(result['a'])}<br>B: {page.text(result['b'])}</p>"
    page.write(path, "B against A", head, sections)


def _backward(rates):
    names = list(next(iter(rates.values())))
    rows = [[page.text(figure), *cells] for figure, *cells in _cells(rates, names)]
    note = (
        "The new queries work with the old catalogue where they find at least what the old ones do."
    )
    if "new" in names:
        note += (
            " Share of the gain: of what embedding the catalogue anew gains, the part that the new "
            "queries bring without it."
        )
    return f"<p>{note}</p>" + page.table(["", *(COLUMNS[name] for name in names)], rows)


def _cells(rates, names):
    """Rows of text: a figure, then its value for each of `names`."""
    for figure, values in rates.items():
        shown = {name: f"{v:.3f}" if np.isfinite(v) else "no gain" for name, v in values.items()}
        title = "MAP@R" if figure == "map@r" else figure
        yield [title, *(shown.get(name, "") for name in names)]
