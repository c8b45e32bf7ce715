import numpy as np
import tensorflow as tf

from metriclearn import equal_rows


def test_distinct_rows_are_found_by_value():
    rng = np.random.default_rng(1)
    for dtype in np.float32, np.float64:
        x = rng.integers(-1, 2, (60, 3)).astype(dtype) * 0.1
        x[5] = -0.0 * x[5]
        x[7:9] = np.nan
        wanted = [next((j for j in range(i) if (x[j] == x[i]).all()), i) for i in range(60)]
        firsts, places = (t.numpy() for t in equal_rows.distinct_rows(tf.constant(x)))
        assert firsts[places].tolist() == wanted
        assert firsts.tolist() == sorted(set(wanted))
    # Sums in float32 cannot tell these apart; the rows can.
    close = np.full((300, 4), 1e8, np.float32)
    close[:, 0] = np.arange(300) / 1000
    for x in rng.normal(size=(5000, 8)).astype(np.float32), close:
        firsts, places = equal_rows.distinct_rows(tf.constant(x))
        assert firsts.numpy().tolist() == places.numpy().tolist() == list(range(len(x)))
