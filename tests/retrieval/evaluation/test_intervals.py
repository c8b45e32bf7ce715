"""Intervals against plain definitions."""

import numpy as np
import pytest

from retrieval.evaluation import intervals

pytestmark = pytest.mark.numeric


def test_intervals_are_wider_when_products_are_few():
    random = np.random.default_rng(1)
    values = (random.random((400, 1)) < 0.5).astype(float)
    values = np.repeat(values[:20], 20, 0)  # a product's queries stand or fall together
    clustered = intervals.bootstrap(values, np.repeat(np.arange(20), 20))
    alone = intervals.bootstrap(values, np.arange(400))
    assert clustered.std() > 3 * alone.std()
    expected = values[::20].std() / np.sqrt(20)
    assert clustered.std() == pytest.approx(expected, rel=0.1)
