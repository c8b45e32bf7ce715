"""What the server refuses, over raw connections: bodies, slowness, strangers, floods."""

import asyncio
import concurrent.futures
import io
import json
import socket
import threading
import time
import zlib

import httpx
import numpy as np
import psutil
from PIL import Image

from retrieval.serve import limits, processes

MIB = 2**20


def place(address):
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


def talk(address, parts):
    """Sends parts, as far as the server takes them; returns all that it answers."""
    with socket.create_connection(place(address), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it has closed: what it said is read below
        answer = b""
        try:
            while more := connection.recv(65536):
                answer += more
        except OSError:
            pass
        return answer


POST = (
    b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n"
)


def test_a_large_body_is_refused_by_its_announcement(serving):
    answer = talk(serving[0], [POST + b"Content-Length: 99999999\r\n\r\n"])
    assert status(answer) == 413 and b"application/problem+json" in answer


def test_a_chunked_body_of_100_mb_is_cut_and_memory_stays(serving):
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(part), part)
    sent = []

    def chunks():
        yield head
        for _ in range(1600):
            sent.append(len(chunk))
            yield chunk
        yield b"0\r\n\r\n"

    before = psutil.Process().memory_info().rss
    answer = talk(serving[0], chunks())
    assert status(answer) == 413
    assert sum(sent) < 60 * MIB, "the server read on"
    assert psutil.Process().memory_info().rss - before < 60 * MIB


def test_headers_and_bodies_that_come_slowly_are_ended(start, shop, monkeypatch):
    """While many of them wait, others are answered."""
    monkeypatch.setattr(processes, "HEADERS", 0.5)
    with start(f"shop={shop[0]}/i", timeout=1.0) as (address, _):
        slow = [
            (b"GET / HTTP/1.1\r\nHost: local", None),  # in the headers
            (b"", None),  # before them
            (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT", 200),  # in the second
            (POST + b"Content-Length: 1000\r\n\r\n--b", 408),  # in the body
        ] * 10
        with concurrent.futures.ThreadPoolExecutor(len(slow)) as pool:
            answers = [pool.submit(talk, address, [part]) for part, _ in slow]
            time.sleep(0.1)
            assert httpx.get(f"{address}/readyz").status_code == 200
            for (_, expected), answer in zip(slow, answers, strict=True):
                assert status(answer.result()) == expected


def test_headers_and_trailers_without_an_end_are_cut(serving):
    """Their bytes are not those of a body, which another limit counts."""
    line = b"x: " + b"y" * 60_000
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    for start in (b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx: ", b"\r\n", chunked):
        sent = []

        def parts(start=start, sent=sent):
            yield start
            for _ in range(1000):
                sent.append(1)
                yield line if start != b"\r\n" else b"\r\n" * 30_000

        assert status(talk(serving[0], parts())) in (None, 400, 422)
        assert len(sent) < 300, start


def test_a_photo_may_come_in_small_pieces(serving, photo):
    """Chunks of a few bytes have more bytes around them than a header may have."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = head + photo(3) + bytes(30_000) + b"\r\n--b--\r\n"
    pairs = [body[n : n + 2] for n in range(0, len(body), 2)]
    pieces = [b"%x\r\n%s\r\n" % (len(pair), pair) for pair in pairs]
    request = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(serving[0], [request + b"".join(pieces) + b"0\r\n\r\n"])
    assert len(pieces) * 5 > processes.HEADER_BYTES
    assert status(answer) == 200 and b'"p3"' in answer


def test_too_many_connections_are_closed(start, shop, monkeypatch):
    monkeypatch.setattr(processes, "CONNECTIONS", 5)
    with start(f"shop={shop[0]}/i") as (address, _):
        held = [socket.create_connection(place(address)) for _ in range(5)]
        time.sleep(0.1)
        assert talk(address, [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"]) == b""
        for connection in held:
            connection.close()
        time.sleep(0.1)
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_a_token_is_needed_and_compared(start, shop, photo):
    with start(f"shop={shop[0]}/i", token="sésame") as (address, _):  # noqa: SIM117
        with httpx.Client(base_url=address, timeout=60) as http:
            for path in ("/", "/static/app.js", "/healthz", "/readyz", "/openapi.json"):
                assert http.get(path).status_code == 200
            for path in ("/v1/info", "/metrics", "/v1/items/images%2F3-0.png/image"):
                assert http.get(path).status_code == 401
            for bad in ("", "Bearer", "Bearer x", "Basic sésame", "Bearer sésam"):
                answer = http.get("/v1/info", headers={"Authorization": bad.encode("latin-1")})
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert "sésame" not in answer.text
            for cookie in ("prototrain_token=x", "prototrain_token", "a=b; ;;==", "\xff"):
                answer = http.get("/v1/info", headers={"Cookie": cookie.encode("latin-1")})
                assert answer.status_code == 401
            refused = http.post("/v1/search", files={"image": photo(1)})
            assert refused.status_code == 401  # and the connection serves on
            good = {"Authorization": "Bearer sésame".encode()}
            assert http.get("/v1/info", headers=good).status_code == 200
            assert http.get(
                "/v1/info", headers={"Cookie": "prototrain_token=s%C3%A9same"}
            ).status_code == 200  # fmt: skip


def test_other_names_for_this_computer_are_refused(start, shop):
    """A page elsewhere could have its own name lead to 127.0.0.1, and read the answers."""
    with start(f"shop={shop[0]}/i", hosts=limits.LOOPBACK) as (address, _):
        port = place(address)[1]
        for host, expected in (
            (f"127.0.0.1:{port}", 200),
            ("localhost", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("[::1", 421),
            ("", 421),
        ):
            assert httpx.get(f"{address}/v1/info", headers={"Host": host}).status_code == expected


def test_beyond_the_queue_requests_get_a_prompt_503(start, shop, photo):
    """And those that were admitted are answered, when the device is free."""
    go = threading.Event()

    with start(f"shop={shop[0]}/i", queue=3) as (address, found):
        found._embed = lambda _, images: go.wait(20) and shop[1].embed(images)
        with concurrent.futures.ThreadPoolExecutor(3) as pool, httpx.Client() as http:

            def search():
                return httpx.post(f"{address}/v1/search", files={"image": photo(1)}, timeout=60)

            admitted = [pool.submit(search) for _ in range(3)]
            while found.queue.length < 3:
                time.sleep(0.01)
            for _ in range(20):
                answer = http.post(f"{address}/v1/search", files={"image": photo(1)})
                assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert http.get(f"{address}/v1/info").status_code == 200
            go.set()
            assert [one.result().status_code for one in admitted] == [200] * 3
            assert found.queue.length == 0
            assert 'prototrain_refusals_total{reason="queue"} 20.0' in http.get(
                f"{address}/metrics"
            ).text  # fmt: skip


def test_a_deadline_ends_the_waiting(start, shop, photo):
    go = threading.Event()
    with start(f"shop={shop[0]}/i", timeout=0.5) as (address, found):
        found._embed = lambda _, images: go.wait(20) and shop[1].embed(images)
        try:
            answer = httpx.post(f"{address}/v1/search", files={"image": photo(1)}, timeout=60)
        finally:
            go.set()
        assert answer.status_code == 503 and "took too long" in answer.json()["detail"]
        assert found.queue.length == 0


def bomb(width, height):
    """A PNG file of some kilobytes that would be an image of width x height pixels."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(20 * MIB), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_undecoded(http):
    before = psutil.Process().memory_info().rss
    for sides in ((10_000, 10_000), (100_000, 100_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)):
        answer = http.post("/v1/search", files={"image": bomb(*sides)})
        assert answer.status_code == 422, sides
    assert psutil.Process().memory_info().rss - before < 60 * MIB


def test_images_of_other_formats_are_refused(http):
    ppm = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(ppm, "PPM")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>'
    for data in (ppm.getvalue(), svg, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"", b"http://127.0.0.1/a.png"):
        answer = http.post("/v1/search", files={"image": data})
        assert answer.status_code == 422, data[:20]


def test_the_guard_leaves_other_protocols_alone():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    guard = limits.Guard(app, limits.Limits(), None, None)
    asyncio.run(guard({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_nothing_of_a_query_is_logged(http, photo, caplog):
    with caplog.at_level("DEBUG"):
        assert http.post("/v1/search", files={"image": photo(1)}).status_code == 200
        vector = json.dumps({"vector": [0.123456] * 16})
        http.post("/v1/search", content=vector, headers={"content-type": "application/json"})
    text = "".join(record.getMessage() for record in caplog.records)
    assert "PNG" not in text and "0.123456" not in text
