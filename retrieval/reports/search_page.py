"""A page of search results: the image of each query beside the images of its results."""

from retrieval.reports import page

QUERIES = 100  # maximum shown, since the file contains every image


def write(path, title, answers):
    """Writes the page.

    Args:
      path: the HTML file.
      title: its title.
      answers: per query, (name, path of its image, results as returned by `Catalogue.results`).
    """
    shown = answers[:QUERIES]
    of_queries = page.images_at({name: file for name, file, _ in shown})
    found = [item for _, _, results in shown for item in results]
    of_items = page.images_at({item["id"]: item["path"] for item in found})
    lines = []
    for name, _, results in shown:
        line = [page.Cell(of_queries, name, name, "query", "query")]
        for item in results:
            note = f"{item['score']:.3f} {item['category']}"
            line.append(page.Cell(of_items, item["id"], item["product"], "found", note))
        lines.append(line)
    page.write(path, "search.html", title=title, count=len(answers), lines=lines)
