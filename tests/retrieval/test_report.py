"""What the report shows, and how it writes text from outside."""

import html
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.embeddings import store
from retrieval.evaluation.figures import evaluate
from retrieval.reports import outputs, page, selection


def test_text_cannot_leave_its_place():
    assert page.text("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert page.text("a\nb\tc\x7f\x85") == "a␊b␉c\ufffd\ufffd"
    # Marks that would turn the text behind them round, and separators that end a line.
    assert page.text("a\u202eb\u2066c\u2028d") == "a\ufffdb\ufffdc\ufffdd"
    assert page.text("Äpfel 日本 🍎 \u05d0") == "Äpfel 日本 🍎 \u05d0"


@given(st.text())
def test_any_text_comes_back_in_its_length(value):
    written = page.text(value)
    assert not set(written) & set("<>\"'") and len(html.unescape(written)) == len(value)
    assert html.unescape(written).isprintable() or not value.isprintable()
    written.encode()  # not even half a surrogate pair is left


def test_long_names_keep_both_ends():
    long = "shop/" + "x" * 300 + "/<7>.jpg"
    shown = page.name(long)
    assert shown.startswith(f'<span title="{page.text(long)}">shop/xxx')
    assert shown.endswith("x/&lt;7&gt;.jpg</span>") and len(shown) < len(page.text(long)) + 120
    assert page.name("short<") == "short&lt;"


def test_sections_without_a_body_are_left_out(tmp_path):
    page.write(
        tmp_path / "p.html", "A & B", "<p>head</p>", [("One", "1"), ("Two", ""), ("Six", "6")]
    )
    written = (tmp_path / "p.html").read_text()
    assert '<a href="#one">One</a><a href="#six">Six</a></nav>' in written and "Two" not in written
    assert "<title>A &amp; B</title>" in written


def sets():
    """Queries at angles on a circle, and a catalogue of four products, one picture each."""
    turn = np.radians([0, 90, 180, 270])
    points = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    products = np.array([*"abcd"])
    catalogue = store.Embedded(points, np.array([*"1234"]), products, np.full(4, ""))
    turn = np.radians([1, 2, 89, 130, 181, 200])
    points = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    labels = np.array(["a", "d", "b", "b", "a", "a"])
    queries = store.Embedded(points, np.array([f"q{n}" for n in range(6)]), labels, np.full(6, ""))
    return queries, catalogue


def test_the_gallery_by_hand():
    queries, catalogue = sets()
    result = evaluate(queries, catalogue)
    chosen = selection.choose(queries, catalogue, result)
    # Ranks 1, 3 (d lies 92 degrees off, b 88), 1, 1, 4, 4: of the last two, one stands for a.
    assert result.ranking.first.tolist() == [1, 3, 1, 1, 4, 4]
    assert chosen["worst"] == [4, 1]
    assert sorted(chosen["hits"]) == [0, 2, 3]
    assert chosen["answers"] == {}  # with four items, every answer is among the five shown
    wanted = selection.wanted(chosen, {"this": result}, [5])
    assert wanted == {"queries": {0, 1, 2, 3, 4, 5}, "catalogue": {0, 1, 2, 3}}


def test_answers_are_the_best_of_the_product(monkeypatch):
    monkeypatch.setattr(selection, "SHOWN", 1)
    queries, catalogue = sets()
    for similarity in ("cosine", "euclidean"):
        result = evaluate(queries, catalogue, similarity=similarity)
        answers = selection.choose(queries, catalogue, result)["answers"]
        assert {q: row for q, (row, _) in answers.items()} == {1: 3, 4: 0, 5: 0}
        expected = (
            np.cos(np.radians(181)) if similarity == "cosine" else 2 * np.cos(np.radians(0.5))
        )
        np.testing.assert_allclose(answers[4][1], expected, atol=1e-6)


def test_a_report_of_distances_shows_them_positive(tmp_path):
    queries, catalogue = sets()
    result = evaluate(queries, catalogue, similarity="euclidean")
    figures = {"queries": "q", "catalogue": None, **result.figures}
    outputs.write_stored(str(tmp_path / "e"), figures, result, queries, catalogue)
    written = (tmp_path / "e-report.html").read_text()
    assert "its distance from the query" in written and "✗ 0." in written
    assert "✗ -" not in written and "✓ -" not in written


def test_figures_never_stand_beside_another_evaluations_lists(tmp_path, monkeypatch):
    queries, catalogue = sets()
    result = evaluate(queries, catalogue)
    figures = {"queries": "q", "catalogue": "c", **result.figures}
    given = (str(tmp_path / "e"), figures, result, queries, catalogue)
    outputs.write_stored(*given)
    assert (tmp_path / "e-eval.json").exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write", full)
    with pytest.raises(OSError, match="No space left"):
        outputs.write_stored(*given)
    assert not (tmp_path / "e-eval.json").exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_one_query_of_one_product(tmp_path):
    """The smallest evaluation there is has a report, too."""
    queries, catalogue = sets()
    queries = store.Embedded(*(getattr(queries, n)[:1] for n in ("embeddings", "ids", "products")),
                             np.array(["k"]))  # fmt: skip
    catalogue = store.Embedded(
        *(getattr(catalogue, n)[:1] for n in ("embeddings", "ids", "products")), np.array(["k"])
    )
    result = evaluate(queries, catalogue)
    figures = {"queries": "q", "catalogue": "c", **result.figures}
    outputs.write_stored(str(tmp_path / "e"), figures, result, queries, catalogue)
    written = (tmp_path / "e-report.html").read_text()
    assert "1 catalogue items (1 product)." in written and "nan" not in written
