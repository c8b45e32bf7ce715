"""The API, over a running server."""

import io

import numpy as np
from PIL import Image


def photo(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def test_try(http, shop):
    data = (shop[0] / "images/3-0.png").read_bytes()
    r = http.post("/v1/search", files={"image": data}, params={"facets": True})
    print(r.status_code, r.text, r.headers)
    assert r.status_code == 200
    for p in ("/v1/info", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/items/3-0", "/nope"):
        r = http.get(p)
        print(p, r.status_code, r.text[:300])
    for j in ({"id": "images/3-0.png"}, {"vector": [1.0] * 16}, {"id": ""}, {"vector": [1.0]}, {}):
        r = http.post("/v1/search", json=j)
        print(r.status_code, r.text[:300])
    r = http.post("/v1/embed", files={"image": data})
    print(r.text)
    r = http.get(http.post("/v1/search", files={"image": data}).json()["results"][0]["image"])
    print(r.headers, len(r.content))
    assert 0
