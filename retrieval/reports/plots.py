"""Plots as PNG: recall over k, similarity, and queries with their results."""

import numpy as np

from trainer import files

TOP = 5  # results beside each query
RIGHT, WRONG, QUERY = "#2e8b57", "#c0392b", "#5b6770"


def save_figure(figure, path):
    """Writes a matplotlib figure as PNG."""
    with files.published(path) as out:
        figure.savefig(out, format="png")


def top_retrieved(path, panels, top=TOP):
    """Draws each query with its best items in every ranking; relevant items have a green frame.

    Args:
      path: the PNG file.
      panels: rankings to show side by side, [(title, [(query, [(image, caption, relevant)])])],
        with the same queries in the same order. A query is (image, caption). Images are uint8
        [H, W, C], captions plain text.
      top: items per query.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(panels[0][1])
    per_panel = top + 1
    columns = per_panel * len(panels) + len(panels) - 1
    figure = Figure(figsize=(0.85 * columns, 0.95 * rows + 0.5), dpi=90)
    FigureCanvasAgg(figure)
    widths = ([1] * per_panel + [0.35]) * len(panels)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.5 / (0.95 * rows + 0.5), 0.12, 0.3)
    grid = figure.add_gridspec(rows, columns, width_ratios=widths[:-1])
    for p, (title, entries) in enumerate(panels):
        left = p * (per_panel + 1)
        for r, ((image, caption), found) in enumerate(entries):
            _cell(figure.add_subplot(grid[r, left]), image, caption, QUERY)
            for c, (item, text, right) in enumerate(found[:top]):
                axes = figure.add_subplot(grid[r, left + 1 + c])
                _cell(axes, item, text, RIGHT if right else WRONG, width=3)
        middle = (left + per_panel / 2) / columns
        figure.text(middle, 0.995, title, ha="center", va="top", fontsize=10)
    save_figure(figure, path)


def _cell(axes, image, caption, color, width=1):
    image = np.asarray(image)
    gray = image.ndim == 3 and image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    # An unescaped dollar sign starts mathematical text.
    shown = caption if len(caption) <= 14 else caption[:13] + "…"
    axes.set_title(shown.replace("$", r"\$"), fontsize=5.5, pad=2)
    for side in axes.spines.values():
        side.set_color(color)
        side.set_linewidth(width)


def panels(queries, catalogue, results, shown, query_images, item_images):
    """The panels of `top_retrieved`.

    Args:
      queries, catalogue: `Embedded`.
      results: {title: `figures.Evaluation`}, one panel each.
      shown: query rows to show.
      query_images, item_images: {id: uint8 image}; a missing one is gray.
    """
    blank = np.full((8, 8, 1), 200, np.uint8)
    answer = []
    for title, result in results.items():
        entries = []
        for q in shown:
            product = queries.products[q]
            found = [
                (
                    item_images.get(str(catalogue.ids[r]), blank),
                    str(catalogue.products[r]),
                    catalogue.products[r] == product,
                )
                for r in result.rows[q, :TOP]
                if r >= 0
            ]
            entries.append(((query_images.get(str(queries.ids[q]), blank), str(product)), found))
        answer.append((title, entries))
    return answer


def recall_curve(ranking, points=60):
    """(ks, recall@k) at up to `points` cut-offs, evenly spaced in log k, as two lists."""
    last = max(int(ranking.candidates.max(initial=1)), 1)
    ks = np.unique(np.round(np.geomspace(1, min(last, 1000), points)).astype(int))
    first = np.sort(ranking.first[ranking.answerable])
    return ks.tolist(), (np.searchsorted(first, ks, "right") / max(1, len(first))).tolist()


def recall_at_k(path, curves):
    """Draws recall over k, one curve per entry of {title: (ks, rates)}."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure()
    for title, (ks, rates) in curves.items():
        axes.plot(ks, rates, label=title)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="k, number of results considered", ylabel="recall@k", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def histogram(path, counts):
    """Draws the result of `similarity.histogram`."""
    figure, axes = _figure()
    for kind, color in (("different_product", QUERY), ("same_product", RIGHT)):
        shares = np.array(counts[kind]) / max(1, sum(counts[kind]))
        axes.stairs(shares, counts["edges"], fill=True, alpha=0.6, color=color, label=kind)
    axes.set(xlabel=counts["unit"], ylabel="fraction of pairs")
    axes.legend([label.replace("_", " ") for label in ("different_product", "same_product")])
    save_figure(figure, path)


def _figure():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
