"""The geometry of charts, and the SVG that shows it."""

import xml.etree.ElementTree

import pytest

from retrieval.reports import charts, page


def svg(chart):
    drawn = str(page.ENVIRONMENT.get_template("chart.html").module.svg(chart))
    for name in ("grid", "whisker", "0", "img", ".35em", "end", "middle", "16"):  # as XML wants it
        drawn = drawn.replace(f"={name} ", f'="{name}" ').replace(f"={name}>", f'="{name}">')
    return xml.etree.ElementTree.fromstring(drawn)


def test_recall_lies_where_the_axes_say():
    curves = {"a": ([1, 10, 100], [0.0, 0.5, 1.0]), "<b>": ([1, 100], [1, 1])}
    chart = charts.recall(curves, {10: (0.25, 0.75), 1000: (0, 1)})
    ticks, levels = dict(chart.ticks), dict(chart.levels)
    assert list(ticks) == [1, 2, 5, 10, 20, 50, 100]
    assert chart.lines[0] == [
        (ticks[1], levels["0"]), (ticks[10], levels["0.5"]), (ticks[100], levels["1"])
    ]  # fmt: skip
    assert ticks[1] == chart.left and ticks[100] == chart.right
    assert levels["0"] == chart.bottom and levels["1"] < levels["0"]
    # The interval at 1000 lies beyond the axis.
    assert chart.whiskers == [(ticks[10], levels["0.25"], levels["0.75"])]
    drawn = svg(chart)
    assert [line.get("class") for line in drawn.findall("polyline")] == ["c0", "c1"]
    assert drawn.find("polyline").get("points").split()[0] == f"{ticks[1]},{levels['0']}"
    assert {"recall@k", "0.75", "100"} <= {text.text for text in drawn.findall("text")}


def test_bars_show_shares_of_pairs():
    counts = {
        "unit": "cosine",
        "edges": [0.0, 0.5, 1.0],
        "same_product": [0, 4],
        "different_product": [3, 1],
    }
    chart = charts.histogram(counts)
    different, same = chart.bars
    top, middle = dict(chart.levels)["100%"], (chart.left + chart.right) / 2
    assert same == [(middle, top, chart.right - middle)]
    assert [x for x, _, _ in different] == [chart.left, middle]
    shares = [(chart.bottom - y) / (chart.bottom - top) for _, y, _ in different]
    assert shares == pytest.approx([0.75, 0.25], abs=1e-3)
    assert chart.x_name == "cosine between the two images of a pair"
    shown = [rect.get("class") for rect in svg(chart).findall("rect")]
    assert shown == ["h0", "h0", "h1"]


def test_a_histogram_of_no_pairs_is_empty():
    counts = {"unit": "dot", "edges": [0.0, 1.0], "same_product": [0], "different_product": [0]}
    assert charts.histogram(counts).bars == [[], []]
