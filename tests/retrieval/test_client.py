"""The client of the search API, without a server; with one it is used in serve/."""

import json

import httpx
import pytest

from retrieval import client

RESULT = {"id": "a", "product": "p", "category": "c", "image": None, "rank": 1, "score": 0.5}
INDEX = {"catalogue": "shop", "version": 3, "model": "w", "similarity": "cosine"}
FOUND = {"results": [RESULT], "facets": None, "query": "q", "index": INDEX, "new": 1}


class Server:
    """Answers each request by the next of some responses, and keeps the requests."""

    def __init__(self, *responses):
        self.responses, self.requests = list(responses), []

    def __call__(self, request):
        self.requests.append(request)
        return self.responses.pop(0)

    def client(self, **options):
        transport = httpx.MockTransport(self)
        return client.Client("http://shop.example/", transport=transport, **options)


def test_answers_are_typed_and_what_is_new_is_ignored(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"photo")
    server = Server(*[httpx.Response(200, json=FOUND)] * 3)
    with server.client(token="t", catalogue="shop") as search:
        found = search.search(tmp_path / "a.jpg", k=3, threshold=0.0, group_by="product")
        assert found == client.Found([client.Result(**RESULT)], None, "q", client.Index(**INDEX))
        search.search(b"photo", facets=True)
        search.search(vector=(1, 2))
    first, second, third = server.requests
    assert dict(first.url.params) == {
        "k": "3", "threshold": "0.0", "group_by": "product", "catalogue": "shop",
    }  # fmt: skip
    assert b"photo" in first.read() and b'name="image"' in first.read()
    assert first.headers["authorization"] == "Bearer t"
    assert second.url.params["facets"] == "true" and json.loads(third.read()) == {
        "vector": [1.0, 2.0]
    }


def test_a_busy_server_is_asked_again(monkeypatch):
    slept = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    busy = httpx.Response(503, headers={"Retry-After": "2"}, json={"detail": "too many"})
    server = Server(busy, busy, httpx.Response(200, json=FOUND))
    assert server.client().search(id="a").query == "q" and slept == [2, 2]
    with pytest.raises(client.ServeError, match="too many") as error:
        Server(*[busy] * 9).client(retries=1).search(id="a")
    assert error.value.status == 503 and error.value.retry_after == 2 and len(slept) == 3


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(404, json={"detail": "no item"}), "404: no item"),
        (httpx.Response(502, text="<html>"), "502: Bad Gateway"),
        (httpx.Response(500, json=[]), "500: Internal Server Error"),
    ],
)
def test_refusals_say_why(response, said):
    with pytest.raises(client.ServeError, match=said):
        Server(response).client().item("a")


def test_an_unreachable_server_is_named():
    with client.Client("http://127.0.0.1:9") as search:
        assert not search.ready()
        with pytest.raises(client.ServeError, match=r"127.0.0.1:9") as error:
            search.info()
    assert error.value.status == 0


def test_ids_are_quoted_in_addresses():
    item = {name: RESULT[name] for name in ("id", "product", "category", "image")}
    server = Server(httpx.Response(200, json=item), httpx.Response(200, content=b"jpeg"))
    search = server.client()
    assert search.item("a/b?c") == client.Item(**item) and search.image("../x", 64) == b"jpeg"
    assert [r.url.raw_path for r in server.requests] == [
        b"/v1/items/a%2Fb%3Fc", b"/v1/items/..%2Fx/image?size=64",
    ]  # fmt: skip


def test_one_query_at_a_time():
    for given in ({}, {"image": b"a", "id": "b"}):
        with pytest.raises(TypeError, match="one of"):
            Server().client().search(**given)
