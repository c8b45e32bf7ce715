"""Searches by words at a server."""

import pytest

from retrieval import client


def test_words_find_their_items(worded, start):
    with start(f"{worded}/i", f"{worded}/headed") as (address, _):
        with client.Client(address, catalogue="i") as asked:
            assert asked.info().text
            found = asked.search(text=" blue ", k=1)
            assert found.query == "blue" and [one.product for one in found.results] == ["blue"]
            by_id = asked.search(id="blue", k=1).results[0]
            assert by_id.product != "blue"
            for wrong in ("", " \n", "x" * 1025):
                with pytest.raises(client.ServeError, match="text: "):
                    asked.search(text=wrong)
        with client.Client(address, catalogue="headed") as asked:
            assert not asked.info().text
            with pytest.raises(client.ServeError, match="the head was trained on images"):
                asked.search(text="red")
