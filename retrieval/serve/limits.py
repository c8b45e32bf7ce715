"""What a server accepts, checked in ASGI before anything else sees a request.

`Guard` answers by itself what it refuses: strangers without the token, other host names, bodies
that are too large or too slow, requests beyond the queue. It also adds the security headers.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import urllib.parse

from retrieval.serve import schemas

MIB = 2**20
COOKIE = "prototrain_token"  # how the page sends the token with images
DRAIN = 1.0  # seconds that a refused request may take to send its body
# The page itself and what a probe asks need no token: they say nothing about the catalogue.
PUBLIC = ("/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico")
QUEUED = ("/v1/search", "/v1/embed")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
      body: bytes of a request.
      pixels: of an image.
      queue: requests that may wait for an answer; more get a 503.
      timeout: seconds until a request must be answered.
      batch: images per call of a model, at most.
      wait: seconds that a batch waits for images that are being decoded, on a GPU.
      token: what requests must carry; '' for none.
      hosts: names that requests may address; none: any.
    """

    body: int = 10 * MIB
    pixels: int = 50_000_000
    queue: int = 64
    timeout: float = 10.0
    batch: int = 2
    wait: float = 0.005
    token: str = ""
    hosts: tuple[str, ...] = ()


class Guard:
    """ASGI middleware that enforces `Limits`."""

    def __init__(self, app, limits, queue, metrics):
        """`queue` is the `Queue` that admits searches."""
        self.app, self.limits, self.queue, self.metrics = app, limits, queue, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(scope, receive, send, self.limits.body)
        try:
            async with asyncio.timeout(self.limits.timeout):
                self._check(scope)
                await self.app(scope, exchange.receive, exchange.send)
        except schemas.Refused as refused:
            await self._refuse(exchange, refused)
        except TimeoutError:
            late = schemas.Refused(503, "deadline", "The answer took too long.", retry_after=1)
            if not exchange.complete:
                late = schemas.Refused(408, "slow", "The request took too long to arrive.")
            await self._refuse(exchange, late)

    def _check(self, scope):
        headers = dict(scope["headers"])
        path, limits = scope["path"], self.limits
        if limits.hosts and _name(headers.get(b"host", b"")) not in limits.hosts:
            # A page elsewhere whose name was made to lead here must not read the catalogue.
            raise schemas.Refused(421, "host", "This server answers on localhost only.")
        if limits.token and path not in PUBLIC and not path.startswith("/static/"):
            given = _token(headers)
            if not hmac.compare_digest(given, limits.token.encode()):
                raise schemas.Refused(401, "token", "Send the header Authorization: Bearer TOKEN.")
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > limits.body:
            raise _too_large(limits.body)
        if path in QUEUED and self.queue.full:
            raise self.queue.refusal()

    async def _refuse(self, exchange, refused):
        self.metrics.refusals.labels(refused.reason).inc()
        if exchange.started:
            raise refused  # the connection is cut: half an answer must not look whole
        # A client that is still sending would miss an answer that closes the connection.
        await exchange.drain()
        response = schemas.problem(refused)
        start = {"type": "http.response.start", "status": refused.status}
        await exchange.send(start | {"headers": response.raw_headers})
        await exchange.send({"type": "http.response.body", "body": response.body})


class _Exchange:
    """Counts what arrives, and adds headers to what leaves."""

    def __init__(self, scope, receive, send, limit):
        self._receive, self._send, self._limit = receive, send, limit
        names = dict(scope["headers"])
        has_body = names.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in names
        self._count, self.complete, self.started = 0, not has_body, False

    async def receive(self):
        message = await self._next()
        if self._count > self._limit:
            raise _too_large(self._limit)
        return message

    async def _next(self):
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.started = True
            # What is left of a body is not read as the next request.
            closing = [] if self.complete else [(b"connection", b"close")]
            message = {**message, "headers": [*message["headers"], *_HEADERS, *closing]}
        await self._send(message)

    async def drain(self):
        """Reads the rest of a body, within limits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN):
                while not self.complete and self._count <= 2 * self._limit:
                    await self._next()


def _name(host):
    """The name in a Host header, without the port; None if it is none."""
    try:
        return urllib.parse.urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:
        return None


def _too_large(limit):
    return schemas.Refused(413, "body", f"A request may hold {limit / MIB:g} MiB.")


def _token(headers):
    """The token that a request carries, as bytes; empty if there is none."""
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    for pair in headers.get(b"cookie", b"").split(b";"):
        name, _, value = pair.strip().partition(b"=")
        if name == COOKIE.encode():
            return urllib.parse.unquote_to_bytes(value)
    return b""


class Queue:
    """Requests that wait for an answer, at most so many; use it as a context manager."""

    def __init__(self, limit, metrics):
        self.limit, self.metrics, self.length = limit, metrics, 0

    @property
    def full(self):
        return self.length >= self.limit

    def refusal(self):
        return schemas.Refused(503, "queue", "Too many requests wait.", retry_after=1)

    def __enter__(self):
        if self.full:
            raise self.refusal()
        self.length += 1
        self.metrics.queue.set(self.length)

    def __exit__(self, *error):
        self.length -= 1
        self.metrics.queue.set(self.length)
