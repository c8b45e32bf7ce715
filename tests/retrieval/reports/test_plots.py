"""Plots as PNG."""

import numpy as np
from PIL import Image

from retrieval.evaluation import similarity
from retrieval.evaluation.figures import evaluate
from retrieval.reports import plots


def colors_of(path):
    return {color for _, color in Image.open(path).convert("RGB").getcolors(2**24)}


def rgb(color):
    return tuple(bytes.fromhex(color[1:]))


def test_the_curve_is_recall_at_each_k(circle):
    queries, catalogue = circle
    ranking = evaluate(queries, catalogue).ranking  # ranks 1, 3, 1, 1, 4, 4
    ks, rates = plots.recall_curve(ranking)
    assert ks == [1, 2, 3, 4]
    np.testing.assert_allclose(rates, [3 / 6, 3 / 6, 4 / 6, 1])


def test_panels_show_each_query_with_its_results(circle, tmp_path):
    queries, catalogue = circle
    result = evaluate(queries, catalogue)
    known = {"q1": np.zeros((4, 4, 3), np.uint8)}
    panels = plots.panels(queries, catalogue, {"this": result}, [0, 1], known, {})
    ((title, ((first, _), ((image, caption), found))),) = panels
    assert (title, caption) == ("this", "d") and image is known["q1"]
    assert first[0].shape == (8, 8, 1)  # unknown
    assert [right for _, _, right in found] == [False, False, True, False]
    assert [product for _, product, _ in found] == [*"abdc"]
    plots.top_retrieved(tmp_path / "p.png", panels)
    assert {rgb(plots.RIGHT), rgb(plots.WRONG)} <= colors_of(tmp_path / "p.png")


def test_captions_are_plain_text(tmp_path):
    """Dollar signs and long captions are shown as they are, or shortened."""
    entry = ((np.zeros((4, 4, 1), np.uint8), r"$\no"), [])
    plots.top_retrieved(tmp_path / "p.png", [("t", [entry])])
    entry = ((np.zeros((4, 4, 1), np.uint8), "x" * 300 + "$"), [])
    plots.top_retrieved(tmp_path / "q.png", [("t", [entry])])
    assert Image.open(tmp_path / "p.png").size == Image.open(tmp_path / "q.png").size


def test_curves_and_histograms_are_drawn(circle, tmp_path):
    plots.recall_at_k(tmp_path / "r.png", {"this": ([1, 2, 5], [0.1, 0.5, 1.0])})
    assert len(colors_of(tmp_path / "r.png")) > 10
    plots.histogram(tmp_path / "h.png", similarity.histogram(*circle, "cosine"))
    assert len(colors_of(tmp_path / "h.png")) > 10
