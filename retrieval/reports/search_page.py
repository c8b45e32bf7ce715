"""A page of what a search found: each query's picture beside those of its items."""

from retrieval.reports import page

QUERIES = 100  # shown; more would not be looked at, and every picture is in the file


def write(path, title, queries, items, scores, rows):
    """Publishes the page.

    queries: `store.Embedded`. items: a table as `index.load` returns it. scores, rows [Q, k]: as
    `index.find` returns them. A picture that is not where the stores say is a question mark.
    """
    shown = range(min(len(queries), QUERIES))
    found = [[int(row) for row in rows[q] if row >= 0] for q in shown]
    needed = sorted({row for each in found for row in each})
    known = dict(zip(needed, items.take(needed).to_pylist(), strict=True))
    of_queries = page.pictures_at({str(queries.ids[q]): queries.paths[q] for q in shown})
    of_items = page.pictures_at({item["id"]: item["path"] for item in known.values()})
    lines = []
    for q, each in zip(shown, found, strict=True):
        name = str(queries.ids[q])
        pictures = [page.picture(of_queries, name, name, "query", "query")]
        for score, row in zip(scores[q], each, strict=False):
            item = known[row]
            note = f"{score:.3f} {page.text(item['category'])}"
            pictures.append(page.picture(of_items, item["id"], item["product"], "found", note))
        lines.append(page.row(pictures))
    first = f"The first {len(shown)} of {len(queries):,} queries. " * (len(shown) < len(queries))
    head = f"<p>{first}Similarity and category stand below each item; its tooltip is its id.</p>"
    page.write(path, title, head, [("Queries and their nearest items", "".join(lines))])
