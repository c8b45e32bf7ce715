"""The bounds of the filters."""

import types

import numpy as np
import pytest

from retrieval import metrics
from retrieval.ranking import kernels, vectors


def products(similarity, dtype, filter):
    """A filter over rows of many lengths, with its scores and the exact ones, float64 [70, 70]."""
    random = np.random.default_rng(10)
    points = random.normal(size=(70, 33)) * 10.0 ** random.integers(-3, 3, (70, 1))
    left, right = vectors.pair(*(points.astype(dtype),) * 2, similarity)
    product = kernels.choose(filter, left, right, 1, None)
    rows, items = left.left(slice(None)), right.right(slice(None))
    scores = product.multiply(product.left(rows), product.right(items), types.SimpleNamespace())
    scores = scores.transpose(1, 0, 2).reshape(70, -1)[:, :70] * product.unit
    wide = [side.prepared(slice(None)) for side in (left, right)]
    exact = wide[0] @ wide[1].T
    if left.squared:
        half = [np.square(each).sum(1) / 2 for each in wide]
        exact -= half[0][:, None] + half[1]
    return product, scores, exact


@pytest.mark.parametrize("filter", kernels.FILTERS[1:])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("similarity", metrics.SIMILARITIES)
def test_the_bounds_hold(similarity, dtype, filter):
    product, scores, exact = products(similarity, dtype, filter)
    error = np.abs(scores - exact)
    assert (error <= product.bound[:, None]).all()
    if filter != "float32":
        # It is no looser than Cauchy-Schwarz makes it: some error comes within a fiftieth.
        assert (error > product.bound[:, None] / 50).any()


def test_an_unknown_filter_is_named():
    left = vectors.Vectors(np.ones((1, 2)), "dot")
    with pytest.raises(
        ValueError, match="filter='int4' is not one of auto, float32, bfloat16, int8"
    ):
        kernels.choose("int4", left, left, 1, None)
