import numpy as np
import tensorflow as tf

from metriclearn.losses import matrices


def test_rows_without_an_entry_stay_finite():
    values, mask = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([[True, False], [False] * 2])
    sums = matrices.log_sum_exp(values, mask).numpy()
    assert sums[0] == 1 and np.isfinite(sums[1]) and sums[1] < -1e30
    np.testing.assert_array_equal(matrices.masked_mean(values, mask), [1, 0])
    kept = matrices.of_complete(values[:, 0], mask, tf.constant([[True, True], [True, False]]))
    np.testing.assert_array_equal(kept, [1])
