"""What these miners return is compared in ../test_oracle.py; here the edges."""

import numpy as np
import pytest

import metriclearn

LABELS = np.array([0, 0, 0, 1, 1])
X = np.array([[0.0], [1.0], [1.0], [0.5], [2.0]])


def test_equally_far_ones_are_taken_by_the_lowest_index():
    mined = metriclearn.mine_batch_easy_hard(LABELS, X, positive="hard", negative="hard")
    assert [t[0] for t in mined] == [0, 1, 3]
    assert metriclearn.mine_hdc(LABELS, X, share=0.01).positives == [4]


def test_references_stand_in_for_the_batch():
    itself = metriclearn.References(LABELS, X, np.arange(5))
    for name in "angular", "batch_easy_hard", "hdc", "multi_similarity", "triplet_margin":
        mine = metriclearn.MINERS[name]
        for got, wanted in zip(mine(LABELS, X, references=itself), mine(LABELS, X), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metriclearn.mine_triplet_margin(LABELS, X, kind="semihard"), "mean 'semi_hard'"),
        (lambda: metriclearn.mine_batch_easy_hard(LABELS, X, positive="har"), "mean 'hard'"),
        (
            lambda: metriclearn.mine_batch_easy_hard(LABELS, X, positive="all"),
            "positive='all' cannot be combined with negative='semi_hard'",
        ),
        (lambda: metriclearn.mine_hdc(LABELS, X, share=50), "share=50 must be from 0 to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
