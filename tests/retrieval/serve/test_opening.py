"""The catalogues that flags name."""

import httpx
import pytest

from retrieval.serve import metrics, opening, thumbnails


def opened(*indices):
    return opening.shelves(list(indices), thumbnails.Thumbnails(), metrics.Metrics(), 1)


def test_names_are_given_or_those_of_the_folders(shop):
    folder = f"{shop[0]}/i"
    assert [shelf.name for shelf in opened(folder + "/", f"other={folder}")] == ["i", "other"]


def test_two_of_one_name_are_refused(shop):
    folder = f"{shop[0]}/i"
    with pytest.raises(ValueError, match="two are called 'i'"):
        opened(folder, folder)
    with pytest.raises(ValueError, match="no such folder"):
        opened("a=/nowhere")


def test_each_catalogue_answers_for_itself(shop, start, photo):
    """With an embedder of its own; images are those of the item's catalogue."""
    with start(f"a={shop[0]}/i", f"b b={shop[0]}/i") as (address, found):
        assert found.served("a").embedder is not found.served("b b").embedder
        with httpx.Client(base_url=address, timeout=60) as http:
            assert http.get("/v1/info").json()["catalogues"] == ["a", "b b"]
            for name in ("a", "b b"):
                answer = http.post(
                    "/v1/search", files={"image": photo(1)}, params={"catalogue": name}
                ).json()
                assert answer["index"]["catalogue"] == name
                image = answer["results"][0]["image"]
                assert image.endswith(f"?catalogue={name.replace(' ', '%20')}")
                assert http.get(image).status_code == 200
            assert http.get("/v1/info", params={"catalogue": "c"}).status_code == 404
