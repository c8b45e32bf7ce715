"""Backward compatibility, with stores and with an index."""

import numpy as np
import pytest

from retrieval.catalogue import index
from retrieval.evaluation import backward, inputs


@pytest.mark.parametrize(("factory", "lossless"), [("Flat", True), ("IVF4,SQ4", False)])
def test_an_index_stands_for_the_old_catalogue(models, tmp_path, factory, lossless):
    """Its vectors are ranked exactly, and searched as the index does; removed items are gone."""
    folder = str(tmp_path / "index")
    kept = {k: v for k, v in models.items() if k != "new_catalogue"}
    index.build(models["old_catalogue"], folder, factory, recall=0.7)
    evaluated = backward.evaluate(kept | {"old_catalogue": folder})
    of_index, of_store = backward.rates(evaluated), backward.rates(backward.evaluate(kept))
    found = of_index["recall@1 through the index"]
    for name in ("old", "new_on_old"):
        exact = getattr(of_store["recall@5"], name)
        if lossless:
            at_1 = getattr(found, name)
            assert (
                at_1 == getattr(of_index["recall@1"], name) == getattr(of_store["recall@1"], name)
            )
        of_lists = getattr(of_index["recall@5"], name)
        assert of_lists == pytest.approx(exact, abs=0 if lossless else 0.1)
        assert evaluated[name].evaluation.figures.index.factory == factory
    assert found.new is None and found.share_of_gain is None
    index.remove(["c<7>"], folder)
    left = inputs.load(folder)
    assert len(left) == 119 and "c<7>" not in left.ids and "c<8>" in left.ids
    index.build(models["old_catalogue"], folder, "IVF4,RaBitQ", recall=0.1)
    with pytest.raises(ValueError, match="RaBitQ cannot return its vectors .*: give the store"):
        inputs.load(folder)


def test_what_is_mixed_up_is_refused(models, write_store, tmp_path):
    short = write_store(
        tmp_path / "short", np.ones((2, 5), np.float32), np.array(["1", "2"]), np.arange(2), "new"
    )
    kept = {k: v for k, v in models.items() if k != "new_catalogue"}
    with pytest.raises(ValueError, match="--new_queries=.*short has 5 dimensions and --old_cata"):
        backward.evaluate(kept | {"new_queries": short})
    with pytest.raises(ValueError, match="must be those of the old model"):
        backward.evaluate(kept | {"old_queries": models["new_queries"]})


def test_the_share_of_a_gain():
    def rates(**each):
        return backward._share(**each).get("share_of_gain")

    assert rates(old=0.5, new_on_old=0.6, new=0.7) == pytest.approx(0.5)
    assert np.isnan(rates(old=0.5, new_on_old=0.6, new=0.5))
    assert rates(old=0.5, new_on_old=0.6) is None
