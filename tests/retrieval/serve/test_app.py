"""The API, over a running server."""

import io
import re
import urllib.parse

import numpy as np
import pytest
from PIL import Image

PROBLEM = "application/problem+json"


def ids(response):
    assert response.status_code == 200, response.text
    return [result["id"] for result in response.json()["results"]]


def test_a_photo_finds_its_product_first(http, shop, photo):
    answer = http.post("/v1/search", files={"image": photo(5)}, params={"k": 3})
    assert answer.status_code == 200
    found = answer.json()
    assert [result["rank"] for result in found["results"]] == [1, 2, 3]
    first = found["results"][0]
    assert first["product"] == "p5" and first["category"] == "odd"
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True) and found["facets"] is None
    assert found["index"]["version"] == 1 and found["index"]["catalogue"] == "shop"
    assert found["query"].startswith("sha256:")


def test_an_embedding_is_that_of_the_embedder_and_finds_the_same(http, shop, photo):
    folder, embedder = shop
    vector = http.post("/v1/embed", files={"image": photo(4)}).json()["vector"]
    np.testing.assert_array_equal(np.float32(vector), embedder.embed([photo(4)])[0])
    by_image = ids(http.post("/v1/search", files={"image": photo(4)}))
    assert ids(http.post("/v1/search", json={"vector": vector})) == by_image


def test_an_item_finds_others_and_not_itself(http):
    found = ids(http.post("/v1/search", json={"id": "images/7-0.png"}, params={"k": 100}))
    assert found[0] == "images/7-1.png" and "images/7-0.png" not in found and len(found) == 24


def test_filters(http, photo):
    def search(**parameters):
        return http.post("/v1/search", files={"image": photo(2)}, params=parameters)

    everything = search(k=100).json()["results"]
    assert len(everything) == 25
    even = search(k=100, category="even").json()["results"]
    assert [r["id"] for r in even] == [r["id"] for r in everything if r["category"] == "even"]
    least = everything[4]["score"]
    near = search(k=100, threshold=least - 1e-5).json()["results"]
    assert [r["id"] for r in near] == [r["id"] for r in everything[:5]]
    grouped = search(k=12, group_by="product").json()["results"]
    best = list({r["product"]: r["id"] for r in reversed(everything)}.values())[::-1]
    assert sorted(r["id"] for r in grouped) == sorted(best)[: len(grouped)] or len(best) > 12
    assert len({r["product"] for r in grouped}) == len(grouped) == 12
    assert search(k=1, threshold=2).json()["results"] == []


def test_facets_count_the_nearest_items_whatever_is_filtered(http, photo):
    for parameters in ({}, {"category": "even"}, {"k": 1}):
        answer = http.post(
            "/v1/search", files={"image": photo(2)}, params={"facets": True, **parameters}
        )
        counts = {facet["category"]: facet["count"] for facet in answer.json()["facets"]}
        assert counts == {"even": 12, "odd": 12}


def test_any_id_names_its_item(http, nasty):
    address = f"/v1/items/{urllib.parse.quote(nasty, safe='')}"
    item = http.get(address).json()
    assert item["id"] == nasty and item["image"] == f"{address}/image"
    assert http.get(item["image"]).headers["content-type"] == "image/jpeg"
    assert http.get(f"/v1/items/{urllib.parse.quote(nasty)}").json() == item, "also with a slash"
    assert http.get(f"{item['image']}/image").status_code == 404
    assert len(ids(http.post("/v1/search", json={"id": nasty}))) == 10


def test_images_are_small_and_checked_by_their_tag(http):
    first = http.get("/v1/items/images%2F3-0.png/image", params={"size": 64})
    with Image.open(io.BytesIO(first.content)) as image:
        assert image.format == "JPEG" and max(image.size) == 64
    again = http.get(
        "/v1/items/images%2F3-0.png/image",
        params={"size": 64},
        headers={"If-None-Match": first.headers["etag"]},
    )
    assert again.status_code == 304 and not again.content
    other = http.get("/v1/items/images%2F3-0.png/image", params={"size": 128})
    assert other.headers["etag"] != first.headers["etag"]


def test_info(http, serving):
    info = http.get("/v1/info").json()
    served = serving[1].served()
    assert info["items"] == 25 and info["dimensions"] == 16 and info["recall"] == 1
    assert info["model"] == served.embedder.source["checkpoint_sha256"] and info["version"] == 1
    assert info["catalogues"] == ["shop"] and info["feedback"] is True


@pytest.mark.parametrize(
    ("status", "said", "request_"),
    [
        (422, "not a JPEG", {"files": {"image": b"no image"}}),
        (422, "image", {"files": {"photo": b"x"}}),
        (400, "1", {"files": [("image", b"a"), ("image", b"b")]}),
        (422, "image", {"data": {"image": "text"}, "files": {"x": b""}}),
        (400, "boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
        (
            400,
            "multipart data",
            {"content": b"--bx", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        ),
        (415, "Content-Type", {"content": b"x"}),
        (422, "JSON", {"content": b"{", "headers": {"content-type": "application/json"}}),
        (422, "id", {"json": {}}),
        (422, "id", {"json": {"id": ""}}),
        (422, "id", {"json": {"id": "x" * 2000}}),
        (422, "", {"json": {"id": "images/1-0.png", "vector": [1.0] * 16}}),
        (404, "'nothing'", {"json": {"id": "nothing"}}),
        (422, "JSON", {"content": b'{"id": "\\ud800"}'}),
        (422, "16", {"json": {"vector": [1.0]}}),
        (422, "", {"json": {"vector": ["1"] * 16}}),
        (422, "zero", {"json": {"vector": [0.0] * 16}}),
        (422, "vector", {"content": b'{"vector": [NaN]}'}),
        (422, "k", {"json": {"id": "images/1-0.png"}, "params": {"k": 0}}),
        (422, "k", {"json": {"id": "images/1-0.png"}, "params": {"k": 101}}),
        (422, "threshold", {"json": {"id": "images/1-0.png"}, "params": {"threshold": "nan"}}),
        (422, "group_by", {"json": {"id": "images/1-0.png"}, "params": {"group_by": "id"}}),
        (422, "category", {"json": {"id": "images/1-0.png"}, "params": {"category": "none"}}),
        (404, "catalogue", {"json": {"id": "images/1-0.png"}, "params": {"catalogue": "b"}}),
    ],
)
def test_what_is_wrong_is_said_as_a_problem(http, status, said, request_):
    if "headers" not in request_ and request_.get("content", b"").startswith(b"{"):
        request_["headers"] = {"content-type": "application/json"}
    answer = http.post("/v1/search", **request_)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert problem["status"] == status and said in problem["detail"]
    assert "Traceback" not in answer.text and "\n" not in problem["detail"]


def test_other_paths_and_methods_are_problems_too(http):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/v1/search", 405),
        ("GET", "/v1/items/nothing", 404),
        ("GET", "/v1/items/..%2F..%2Fetc%2Fpasswd/image", 404),
        ("GET", "/docs", 404),
    ):
        answer = http.request(method, path)
        assert answer.status_code == status and answer.headers["content-type"] == PROBLEM, path


def test_every_answer_is_guarded_against_the_browser(http):
    for path in ("/", "/static/app.js", "/v1/info", "/nothing", "/metrics"):
        headers = http.get(path, headers={"Origin": "https://elsewhere.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert not any(name.startswith("access-control") for name in headers)


def test_the_probes_and_the_figures(http, photo):
    assert http.get("/healthz").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}
    http.post("/v1/search", files={"image": photo(1)})
    text = http.get("/metrics").text
    for stage in ("decode", "embed", "search"):
        assert f'prototrain_stage_seconds_count{{stage="{stage}"}}' in text
    for name in ("queue_length", "reloads", "refusals", "batch_size", "index_version"):
        assert f"# TYPE prototrain_{name}" in text


def test_the_page_is_small_and_takes_nothing_from_elsewhere(http):
    page = http.get("/").text
    parts = ["/static/app.js", "/static/style.css", "/static/icon.svg"]
    assert all(f'"{part}"' in page for part in parts)
    texts = [page, *(http.get(part).text for part in parts)]
    assert sum(map(len, texts)) < 60_000
    for text in texts:
        assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}
    for forbidden in ("<style", "style=", "onclick=", "innerHTML", "<script>", "eval("):
        assert forbidden not in page and forbidden not in texts[1].replace("onclick = ", "")


def test_feedback_is_a_line(http, serving, feedback_file, photo):
    found = http.post("/v1/search", files={"image": photo(1)}).json()
    first = found["results"][0]
    vote = {"query": found["query"], "id": first["id"], "good": True, "rank": 1, "score": 0.5}
    assert http.post("/v1/feedback", json=vote).status_code == 204
    from retrieval.evaluation import feedback

    (line,) = feedback.read(feedback_file)
    assert line["product"] == "p1" and line["good"] is True and line["query"] == found["query"]
    assert line["model"] == found["index"]["model"] and line["version"] == 1
    assert http.post("/v1/feedback", json=vote | {"id": "nothing"}).status_code == 404
    assert http.post("/v1/feedback", json=vote | {"good": 3}).status_code == 422
    assert http.post("/v1/feedback", content=b"{}").status_code == 422


def test_a_page_elsewhere_cannot_vote(http):
    """A form can send text without asking first; JSON it cannot."""
    answer = http.post(
        "/v1/feedback",
        content=b'{"query": "q", "id": "images/1-0.png", "good": true, "rank": 1}',
        headers={"content-type": "text/plain"},
    )
    assert answer.status_code == 422


def test_the_api_is_described(http):
    described = http.get("/openapi.json").json()
    assert {"/v1/search", "/v1/embed", "/v1/items/{id}", "/v1/info"} <= described["paths"].keys()
    search = described["paths"]["/v1/search"]["post"]
    assert search["requestBody"]["content"].keys() == {"multipart/form-data", "application/json"}
    assert PROBLEM in search["responses"]["422"]["content"]
