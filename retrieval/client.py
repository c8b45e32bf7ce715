"""A client of the search API of `prototrain serve`; it needs only httpx.

client = Client("http://127.0.0.1:8000")
for result in client.search("photo.jpg", k=5).results:
    print(result.rank, result.product, result.score)
"""

import dataclasses
import os
import time
import urllib.parse
from typing import Any

import httpx


class ServeError(Exception):
    """The server refused a request, or cannot be reached.

    Attributes:
      status: the HTTP status; 0 if there was no answer.
      detail: what is wrong and what to do.
      retry_after: seconds after which to try again; None: do not try again.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None):
        super().__init__(f"{status}: {detail}" if status else detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of a catalogue; `image` is the address of its image, or None."""

    id: str
    product: str
    category: str
    image: str | None


@dataclasses.dataclass(frozen=True)
class Result(Item):
    """A result: `rank` counts from 1; larger scores are nearer."""

    rank: int
    score: float


@dataclasses.dataclass(frozen=True)
class Index:
    """The version of an index that answered; `model` is the hash of its weights."""

    catalogue: str
    version: int
    model: str | None
    similarity: str


@dataclasses.dataclass(frozen=True)
class Found:
    """The answer of a search.

    Attributes:
      results: best first.
      facets: {category: number of the nearest items}, if requested.
      query: id of the query, for `Client.feedback`.
      index: the version of the index that answered.
    """

    results: list[Result]
    facets: dict[str, int] | None
    query: str
    index: Index


@dataclasses.dataclass(frozen=True)
class Info(Index):
    """What a server serves; `recall` is the fraction of the nearest items that the index finds."""

    catalogues: list[str]
    items: int
    dimensions: int
    recall: float
    recall_at: int
    feedback: bool
    text: bool = False


Image = str | os.PathLike | bytes


class Client:
    """Searches a catalogue. Safe to use from several threads; also a context manager.

    If a busy server refuses a request, it is sent again after the time that the server names.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str = "",
        catalogue: str = "",
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ):
        """Connects at the first request.

        Args:
          url: address of the server.
          token: the server's token.
          catalogue: name of one of several catalogues; '': the server's first.
          timeout: seconds for each step of a request.
          retries: number of times a request is sent again to a busy server.
          transport: httpx transport, for tests and proxies.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport
        )
        self._catalogue, self._retries = catalogue, retries

    def search(
        self,
        image: Image | None = None,
        *,
        id: str | None = None,
        text: str | None = None,
        vector: Any = None,
        k: int = 10,
        category: str | None = None,
        threshold: float | None = None,
        group_by: str | None = None,
        facets: bool = False,
    ) -> Found:
        """Finds the items nearest to one of: an image, an item, words, an embedding.

        Args:
          image: path of an image file, or its bytes.
          id: id of an item, which is excluded from the results.
          text: words, if `Info.text` is true.
          vector: float [D], an embedding of the index's model.
          k: number of results, 1 to 100.
          category: search only items of this category.
          threshold: minimum score of a result.
          group_by: 'product': only the best item per product.
          facets: also count the categories of the nearest items.

        Raises:
          ServeError: the server refuses, or cannot be reached.
          OSError: the image file cannot be read.
        """
        if sum(given is not None for given in (image, id, text, vector)) != 1:
            raise TypeError("search takes one of image, id, text, vector")
        asked = {"k": k, "category": category, "threshold": threshold, "group_by": group_by}
        if image is not None:
            body: dict[str, Any] = {"files": {"image": _bytes(image)}}
        elif id is not None:
            body = {"json": {"id": id}}
        elif text is not None:
            body = {"json": {"text": text}}
        else:
            body = {"json": {"vector": [float(x) for x in vector]}}
        answer = self._ask("POST", "/v1/search", asked | {"facets": facets or None}, **body).json()
        counts = answer["facets"]
        return Found(
            [_made(Result, one) for one in answer["results"]],
            None if counts is None else {one["category"]: one["count"] for one in counts},
            answer["query"],
            _made(Index, answer["index"]),
        )

    def embed(self, image: Image) -> list[float]:
        """Returns the embedding of an image, given as for `search`."""
        answer = self._ask("POST", "/v1/embed", files={"image": _bytes(image)})
        return answer.json()["vector"]

    def item(self, id: str) -> Item:
        """Returns the item with an id."""
        return _made(Item, self._ask("GET", f"/v1/items/{_quoted(id)}").json())

    def image(self, id: str, size: int = 256) -> bytes:
        """Returns an item's image as a JPEG file whose longer side is about `size` pixels."""
        return self._ask("GET", f"/v1/items/{_quoted(id)}/image", {"size": size}).content

    def feedback(self, found: Found, result: Result, good: bool) -> None:
        """Records whether a result of a search was right."""
        vote = {"query": found.query, "id": result.id, "good": good}
        vote |= {"rank": result.rank, "score": result.score}
        self._ask("POST", "/v1/feedback", json=vote)

    def info(self) -> Info:
        """Returns what the server serves."""
        return _made(Info, self._ask("GET", "/v1/info").json())

    def ready(self) -> bool:
        """Whether the server answers searches."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _ask(self, method, path, parameters=None, **body):
        given = {"catalogue": self._catalogue or None} | (parameters or {})
        given = {name: value for name, value in given.items() if value is not None}
        for tried in range(self._retries + 1):
            try:
                response = self._http.request(method, path, params=given, **body)
            except httpx.HTTPError as error:
                raise ServeError(0, f"{self._http.base_url}: {error}") from None
            wait = response.headers.get("retry-after", "")
            if response.status_code != 503 or not wait.isdigit() or tried == self._retries:
                break
            time.sleep(int(wait))
        if response.is_success:
            return response
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = response.reason_phrase
        raise ServeError(response.status_code, detail, int(wait) if wait.isdigit() else None)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _bytes(image):
    if isinstance(image, bytes):
        return image
    with open(image, "rb") as file:
        return file.read()


def _quoted(id):
    return urllib.parse.quote(id, safe="")


def _made(kind, values):
    """A dataclass from a JSON object; unknown fields of a newer server are ignored."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: values[name] for name in names})
