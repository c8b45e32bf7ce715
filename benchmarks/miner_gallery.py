"""Draws what each miner selects on a two-dimensional batch: docs/miners.png.

python -m benchmarks.miner_gallery
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import metriclearn

MARGIN = 0.5
SHOWN = [1, 6, 12]  # the anchors, one a class, whose triplets are drawn
COLOURS = ["#0072b2", "#e69f00", "#009e73"]
PANELS = [
    ("batch_hard", {}),
    ("batch_all", {}),
    ("semi_hard", {"margin": MARGIN}),
    ("semi_hard", {"margin": None, "fallback": "farthest"}),
    ("easy_positive", {}),
    ("top_k_hard", {"k": 3}),
    ("distance_weighted", {}),
    ("batch_hard", {"false_negative_guard": 0.35}),
]


def batch():
    """Three classes around the unit circle; two of them have a stray among another class."""
    degrees = [[10, 30, 50, 75, 130], [100, 118, 142, 160, 20], [200, 222, 245, 270, 300]]
    angles = np.deg2rad(np.concatenate(degrees))
    return np.repeat(np.arange(3), 5), np.stack([np.cos(angles), np.sin(angles)], axis=1)


def draw(axes, name, options, labels, x):
    mined = metriclearn.MINERS[name](labels, x, **options)
    anchors, positives, negatives = (np.asarray(i) for i in mined)
    shown = np.isin(anchors, SHOWN)
    for rows, style in (positives, {"color": "#666666"}), (negatives, {"color": "#d55e00"}):
        pairs, counts = np.unique(np.stack([anchors, rows], 1)[shown], axis=0, return_counts=True)
        for (a, b), count in zip(pairs, counts, strict=True):
            width = 0.8 + 1.7 * count / counts.max()  # how often the pair is taken
            axes.plot(*x[[a, b]].T, linewidth=width, alpha=0.8, zorder=1, **style)
    rings = ["black" if i in SHOWN else "white" for i in range(len(x))]
    axes.scatter(*x.T, c=[COLOURS[i] for i in labels], s=55, zorder=2, edgecolors=rings)
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    axes.set_title(f"{name}\n{words}", fontsize=9)
    axes.set_xlabel(f"{len(anchors)} triplets in all", fontsize=8)
    axes.set(aspect="equal", xticks=[], yticks=[])


def main():
    labels, x = batch()
    figure, grid = plt.subplots(2, 4, figsize=(10, 5.9), layout="constrained")
    for axes, (name, options) in zip(grid.flat, PANELS, strict=True):
        draw(axes, name, options, labels, x)
    lines = [plt.Line2D([], [], color=c) for c in ("#666666", "#d55e00")]
    names = ["ringed anchor to positive", "ringed anchor to negative"]
    figure.legend(lines, names, loc="outside lower center", ncols=2)
    path = pathlib.Path(__file__).parent.parent / "docs" / "miners.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path, path.stat().st_size // 1024, "kB")


if __name__ == "__main__":
    main()
