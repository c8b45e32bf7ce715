"""Searches by words at a server."""

import pytest

from retrieval import client


@pytest.mark.parametrize("batch", [1, 8])
def test_words_find_their_items(worded, start, batch):
    with start(f"{worded}/i", f"{worded}/headed", batch=batch) as (address, served):
        with client.Client(address, catalogue="i") as asked:
            assert asked.info().text
            found = asked.search(text=" blue ", k=1)
            assert found.query == "blue" and [one.product for one in found.results] == ["blue"]
            embedded = served.metrics.registry.get_sample_value
            assert embedded("prototrain_batch_size_count") == 1
            by_id = asked.search(id="blue", k=1).results[0]
            assert by_id.product != "blue"
            for wrong in ("", " \n", "x" * 1025):
                with pytest.raises(client.ServeError, match="text: "):
                    asked.search(text=wrong)
        with client.Client(address, catalogue="headed") as asked:
            assert not asked.info().text
            with pytest.raises(client.ServeError, match="the head was trained on images"):
                asked.search(text="red")
