"""What the report shows of an evaluation."""

import numpy as np

from retrieval.embeddings import store
from retrieval.evaluation.figures import evaluate
from retrieval.reports import selection


def test_the_gallery_by_hand(circle):
    queries, catalogue = circle
    result = evaluate(queries, catalogue)
    chosen = selection.choose(queries, catalogue, result)
    # Ranks 1, 3 (d lies 92 degrees off, b 88), 1, 1, 4, 4: of the last two, one stands for a.
    assert result.ranking.first.tolist() == [1, 3, 1, 1, 4, 4]
    assert chosen.worst == [4, 1]
    assert sorted(chosen.hits) == [0, 2, 3]
    assert chosen.answers == {}  # with four items, every answer is among the five shown
    assert chosen.wanted([result], [5]) == ({0, 1, 2, 3, 4, 5}, {0, 1, 2, 3})


def test_answers_are_the_best_of_the_product(circle, monkeypatch):
    monkeypatch.setattr(selection, "SHOWN", 1)
    queries, catalogue = circle
    for similarity in ("cosine", "euclidean"):
        result = evaluate(queries, catalogue, similarity=similarity)
        answers = selection.choose(queries, catalogue, result).answers
        assert {q: row for q, (row, _) in answers.items()} == {1: 3, 4: 0, 5: 0}
        expected = (
            np.cos(np.radians(181)) if similarity == "cosine" else 2 * np.cos(np.radians(0.5))
        )
        np.testing.assert_allclose(answers[4][1], expected, atol=1e-6)


def test_confusion_of_categories_by_hand():
    names = np.array(["1", "2", "3", "4"])
    items = store.Embedded(
        np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 1]]), names, np.array(["p", "q", "q", "p"]),
        np.array(["x", "y", "y", "x"]),
    )  # fmt: skip
    result = evaluate(items)  # each finds its neighbour, of the other category
    assert selection.category_confusion(items, items, result)[0] == ["x", "y"]
    assert selection.category_confusion(items, items, result)[1].tolist() == [[0, 2], [2, 0]]
    one = selection.category_confusion(items, items, result, shown=1)
    assert one[0] == ["x", "…"] and one[1].tolist() == [[0, 2], [2, 0]]
