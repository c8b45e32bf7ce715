import inspect
import itertools

import numpy as np
import pytest
import tensorflow as tf

import metriclearn
from metriclearn import pairs

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
EDGES = [-(2**63), -(2**31), -1, 0, 1, 255, 2**31, 2**32 + 1, 2**53, 2**53 + 1, 2**60, 2**60 + 1]
EDGES += [2**63 - 1, 2**63, 2**64 - 1]


def edges_of(dtype):
    info = np.iinfo(dtype)
    return [v for v in EDGES if info.min <= v <= info.max]


@pytest.mark.parametrize("one, other", list(itertools.product(INTEGERS, INTEGERS)))
def test_integers_of_any_widths_compare_exactly(one, other):
    mine, theirs = edges_of(one), edges_of(other)
    codes = pairs.common_codes(tf.constant(mine, one), tf.constant(theirs, other)).numpy()
    values = mine + theirs
    same = np.array([[a == b for b in values] for a in values])
    np.testing.assert_array_equal(codes[:, None] == codes, same)


@pytest.mark.parametrize("name", ["triplet", "contrastive"])
def test_references_with_wider_labels_keep_them_apart(name):
    x = np.random.default_rng(0).normal(size=(4, 3))
    wide = np.array([0, 2**32, 2**32 + 1, 1])  # as int32: 0, 0, 1, 1
    references = metriclearn.References(wide, x, [-1] * 4)
    got = metriclearn.LOSSES[name](np.array([0, 0, 1, 1], np.int32), x, references=references)
    wanted = metriclearn.LOSSES[name](
        [0, 0, 1, 1], x, references=references._replace(labels=[0, 2, 3, 1])
    )
    np.testing.assert_allclose(got, wanted)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": list("abcd")}, "labels are int32 and reference labels string"),
        ({"embeddings": np.ones((4, 2))}, "3 dimensions cannot be compared with .* of 2"),
        ({"labels": [0, 1]}, "2 reference labels for 4 reference embeddings"),
        ({"self_index": [0, 1]}, "2 self_index for 4 embeddings"),
        ({"self_index": [0.0] * 4}, "self_index must be integers, got float32"),
        ({"self_index": np.zeros((4, 2), int)}, "self_index must be a vector"),
    ],
)
def test_references_that_do_not_fit_are_refused(change, message):
    x = np.ones((4, 3))
    references = metriclearn.References([0, 1, 0, 1], x, np.arange(4))._replace(**change)
    losses = [
        f for f in metriclearn.LOSSES.values() if "references" in inspect.signature(f).parameters
    ]
    for function in *losses, metriclearn.mine_semi_hard:
        with pytest.raises(ValueError, match=message):
            function(np.array([0, 1, 0, 1], np.int32), x, references=references)
