import numpy as np
import pytest

from metriclearn.recall import first_ranks

ROWS = np.array([[1.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])


def test_equal_scores_rank_in_the_order_of_the_catalogue():
    ranks = first_ranks(np.array([7, 8, 9]), ROWS[:3], np.array([5, 8, 7, 9]), ROWS)
    assert ranks.tolist() == [2, 1, 4]
    assert first_ranks(np.array([1, 2, 1, 2]), ROWS).tolist() == [1, 3, 1, 2]


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="catalogue: embeddings must be a matrix with a row per"):
        first_ranks(np.arange(4), ROWS, np.arange(3), ROWS)
    with pytest.raises(ValueError, match="no query has its label"):
        first_ranks(np.arange(4), ROWS)
