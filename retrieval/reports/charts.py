"""The geometry of the report's charts; `templates/chart.html` draws them."""

import dataclasses

import numpy as np

# Margins leave space for the numbers at the axes, which are larger on phones.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 56, 26, 34, 56


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart in units of its view box, y downwards.

    Attributes:
      title, y_name, x_name: texts.
      levels, ticks: [(text, place)] along the y and the x axis.
      lines: polylines, each [(x, y)].
      whiskers: [(x, y low, y high)].
      bars: series of bars, each [(x, y of the upper edge, width)].
    """

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    title: str
    y_name: str
    x_name: str
    levels: list
    ticks: list
    lines: list = ()
    whiskers: list = ()
    bars: list = ()


def recall(curves, intervals) -> Chart:
    """Recall over k, on a logarithmic axis.

    Args:
      curves: {title: (ks, rates)}, one line each.
      intervals: {k: (low, high)} of the first curve.
    """
    top_k = max(2, *(max(ks) for ks, _ in curves.values()))

    def x(k):
        return _x(np.log(k) / np.log(top_k))

    return Chart(
        title="recall over k",
        y_name="recall@k",
        x_name="k, number of results considered (logarithmic)",
        levels=[(f"{rate:g}", _y(rate)) for rate in (0, 0.25, 0.5, 0.75, 1)],
        ticks=[(k, x(k)) for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= top_k],
        lines=[[(x(k), _y(r)) for k, r in zip(*curve, strict=True)] for curve in curves.values()],
        whiskers=[(x(k), _y(low), _y(high)) for k, (low, high) in intervals.items() if k <= top_k],
    )


def histogram(counts) -> Chart:
    """Fraction of pairs over similarity, from the result of `similarity.histogram`."""
    from matplotlib.ticker import MaxNLocator

    edges = np.array(counts["edges"])
    first, last = edges[[0, -1]]
    series = [
        np.array(counts[kind]) / max(1, sum(counts[kind]))
        for kind in ("different_product", "same_product")
    ]
    highest = max(shares.max() for shares in series) or 1.0
    levels = [v for v in MaxNLocator(4).tick_values(0, highest) if v <= highest]
    values = [v for v in MaxNLocator(6).tick_values(first, last) if first <= v <= last]
    places = [_x((edge - first) / (last - first)) for edge in edges]
    return Chart(
        title="histogram of similarity",
        y_name="fraction of pairs",
        x_name=f"{counts['unit']} between the two images of a pair",
        levels=[(f"{100 * level:.3g}%", _y(level / highest)) for level in levels],
        ticks=[
            (f"{round(value, 9) + 0:.4g}", _x((value - first) / (last - first))) for value in values
        ],
        bars=[
            [
                (left, _y(share / highest), round(right - left, 1))
                for share, left, right in zip(shares, places, places[1:], strict=False)
                if share > 0
            ]
            for shares in series
        ],
    )


def _x(share):
    return round(float(LEFT + (WIDTH - LEFT - RIGHT) * share), 1)


def _y(share):
    return round(float(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)), 1)
