"""The report's charts: SVG that takes its colours from the page."""

import numpy as np

from retrieval.reports.page import text

# Room for the numbers at the axes, which a phone shows larger.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 56, 26, 34, 56


def recall(curves, intervals) -> str:
    """Recall over k, k on a logarithmic axis.

    curves: {title: (ks, rates)}, a line each. intervals: {k: (low, high)} of the first.
    """
    top_k = max(2, *(max(ks) for ks, _ in curves.values()))

    def x(k):
        return LEFT + (WIDTH - LEFT - RIGHT) * np.log(k) / np.log(top_k)

    parts = _axes(
        {f"{rate:g}": _y(rate) for rate in (0, 0.25, 0.5, 0.75, 1)},
        {str(k): x(k) for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= top_k},
        "recall@k",
        "k, the results looked at (logarithmic)",
    )
    for n, (ks, rates) in enumerate(curves.values()):
        points = " ".join(f"{x(k):.1f},{_y(r):.1f}" for k, r in zip(ks, rates, strict=True))
        parts.append(f'<polyline class=c{n % 3} points="{points}"/>')
    parts += [
        f'<line class=whisker x1="{x(k):.1f}" x2="{x(k):.1f}" y1="{_y(low):.1f}" '
        f'y2="{_y(high):.1f}"/>'
        for k, (low, high) in intervals.items()
        if k <= top_k
    ]
    legend = "".join(
        f"<span class=key><i class=k{n % 3}></i>{text(title)}</span>"
        for n, title in enumerate(curves)
    )
    note = "<span class=dim>Upright lines: 95% intervals.</span>" if intervals else ""
    return f"<p>{legend}{note}</p>{_svg(parts, 'recall over k')}"


def histogram(counts) -> str:
    """What `evaluation.similarity_histogram` returns."""
    from matplotlib.ticker import MaxNLocator

    edges = np.array(counts["edges"])
    shares = {
        kind: np.array(counts[kind]) / max(1, sum(counts[kind]))
        for kind in ("different_product", "same_product")
    }
    highest = max(s.max() for s in shares.values()) or 1.0

    def x(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - edges[0]) / (edges[-1] - edges[0])

    levels = [v for v in MaxNLocator(4).tick_values(0, highest) if v <= highest]
    values = [v for v in MaxNLocator(6).tick_values(*edges[[0, -1]]) if edges[0] <= v <= edges[-1]]
    parts = _axes(
        {f"{100 * level:.3g}%": _y(level / highest) for level in levels},
        {f"{round(value, 9) + 0:.4g}": x(value) for value in values},
        "share of pairs",
        f"{counts['unit']} between the two pictures of a pair",
    )
    for n, share in enumerate(shares.values()):
        parts += [
            f'<rect class=h{n} x="{x(a):.1f}" width="{x(b) - x(a):.1f}" '
            f'y="{_y(s / highest):.1f}" height="{_y(0) - _y(s / highest):.1f}"/>'
            for s, a, b in zip(share, edges, edges[1:], strict=False)
            if s > 0
        ]
    return (
        "<p><span class=key><i class=k0></i>two pictures of one product</span>"
        "<span class=key><i class=k2></i>of different products</span> The less they overlap, the "
        f"better.</p>{_svg(parts, 'histogram of similarity')}"
    )


def _y(share):
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _axes(levels, ticks, y_name, x_name):
    """Grid lines, numbers {shown: place} and names of both axes."""
    parts = [f"<text x=0 y=16>{text(y_name)}</text>"]
    for shown, y in levels.items():
        parts.append(f'<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x={LEFT - 6} y="{y:.1f}" dy=.35em text-anchor=end>{shown}</text>')
    base = HEIGHT - BOTTOM + 24
    for shown, x in ticks.items():
        parts.append(f'<text x="{x:.1f}" y={base} text-anchor=middle>{shown}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y={HEIGHT - 10} text-anchor=middle>{text(x_name)}</text>')
    return parts


def _svg(parts, label):
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{label}">{"".join(parts)}</svg>'
    )
