"""What an approximate index loses."""

import numpy as np
import pytest

from retrieval.evaluation import index_loss

pytestmark = pytest.mark.numeric


def test_agreement_counts_no_query_as_its_own_neighbour(clustered):
    """An index that finds nothing but the query itself has found nothing."""
    items, result = clustered
    only = np.full((240, 21), -1)
    only[:, 0] = np.arange(240)

    def opened(kind, *_):
        about = {"factory": kind, "bytes_per_vector": 0, "tuned": {}}
        return lambda q, k: only[: len(q), :k], about

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_loss, "_made", opened)
        assert index_loss.losses(items, items, result, "none").agreement == 0
    assert index_loss.losses(items, items, result, "Flat").agreement == 1


def test_the_index_loses_what_is_reported(clustered):
    items, result = clustered
    exact = index_loss.losses(items, items, result, "Flat")
    assert all(lost == 0 for lost in exact.lost.values())
    coarse = index_loss.losses(items, items, result, "PQ2x4")
    assert coarse.lost[1] > 0.05
    assert coarse.bytes_per_vector < exact.bytes_per_vector
