"""A page of what a search found: each query's image beside those of its items."""

from retrieval.reports import page

QUERIES = 100  # shown at most, since every image is in the file


def write(path, title, queries, items, scores, rows):
    """Writes the page.

    Args:
      path: the HTML file.
      title: its title.
      queries: `store.Embedded`.
      items: the table of items, `Catalogue.items`.
      scores, rows: [Q, k], of a `Found`.
    """
    shown = range(min(len(queries), QUERIES))
    found = [[int(row) for row in rows[q] if row >= 0] for q in shown]
    needed = sorted({row for each in found for row in each})
    known = dict(zip(needed, items.take(needed).to_pylist(), strict=True))
    of_queries = page.images_at({str(queries.ids[q]): queries.paths[q] for q in shown})
    of_items = page.images_at({item["id"]: item["path"] for item in known.values()})
    lines = []
    for q, each in zip(shown, found, strict=True):
        name = str(queries.ids[q])
        line = [page.Cell(of_queries, name, name, "query", "query")]
        for score, row in zip(scores[q], each, strict=False):
            item = known[row]
            note = f"{score:.3f} {item['category']}"
            line.append(page.Cell(of_items, item["id"], item["product"], "found", note))
        lines.append(line)
    page.write(path, "search.html", title=title, count=len(queries), lines=lines)
