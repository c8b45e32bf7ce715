import numpy as np
import pytest
import tensorflow as tf

from metriclearn import pairs, scan


@pytest.mark.parametrize("block", [20, 10**6], ids=["blocks", "whole"])
@pytest.mark.parametrize("self_last", [False, True])
def test_each_anchor_sees_its_class_and_the_others(block, self_last, monkeypatch):
    monkeypatch.setattr(scan, "BLOCK_ELEMENTS", block)
    labels = np.array([2, 0, 2, 1, 2, 0])
    x = np.array([[0, 0], [1, 0], [0, 2], [3, 0], [0, 4], [5, 5]], np.float32)
    comparison = pairs.compare(labels, x)
    options = scan.MiningOptions("squared")
    dtypes = tf.int32, tf.int32, tf.bool, tf.float32, tf.float32
    found = scan.scan_rows(tuple, dtypes, comparison, options, self_last=self_last)
    rows, columns, is_positive, positives, negatives = (t.numpy() for t in found)
    assert rows.tolist() == list(range(6))
    nearness = x @ x.T - (x**2).sum(1) / 2  # exact: small integers
    for i, label in enumerate(labels):
        members = np.flatnonzero(labels == label).tolist()
        if self_last:
            members.remove(i)
            members.append(i)
        assert columns[i][: len(members)].tolist() == members
        assert columns[i][is_positive[i]].tolist() == [j for j in members if j != i]
        assert positives[i][: len(members)].tolist() == nearness[i, members].tolist()
        others = labels != label
        assert negatives[i][others].tolist() == nearness[i, others].tolist()
        assert (negatives[i][~others] == negatives.dtype.type(tf.float32.min)).all()
