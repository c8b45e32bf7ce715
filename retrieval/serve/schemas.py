"""The shapes of the API's answers, and its errors as RFC 9457 problem JSON."""

import http
import json
from typing import Literal

import pydantic
from fastapi import Response

PROBLEM = "application/problem+json"


class Refused(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
      reason: one word, for the metrics.
      detail: what is wrong and what to do, for people.
      retry_after: seconds after which to try again; None: do not.
    """

    def __init__(self, status: int, reason: str, detail: str, retry_after: int | None = None):
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail
        self.retry_after = retry_after


class Problem(pydantic.BaseModel):
    """An error, as RFC 9457 describes it."""

    title: str = pydantic.Field(examples=["Not Found"])
    status: int = pydantic.Field(examples=[404])
    detail: str = pydantic.Field(examples=["no item has the id 'a'"])


def problem(refused: Refused) -> Response:
    """The response for a refused request."""
    title = http.HTTPStatus(refused.status).phrase
    body = {"title": title, "status": refused.status, "detail": refused.detail}
    headers = {"Cache-Control": "no-store"}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    # Escaped: a request may hold half of a surrogate pair, which no UTF-8 can.
    return Response(json.dumps(body), refused.status, headers, PROBLEM)


class Item(pydantic.BaseModel):
    """An item of a catalogue."""

    id: str
    product: str
    category: str
    image: str | None = pydantic.Field(description="Address of its image, if there is one.")


class Result(Item):
    """An item that a search found."""

    rank: int = pydantic.Field(ge=1)
    score: float = pydantic.Field(description="Larger is nearer.")


class Facet(pydantic.BaseModel):
    """How many of the nearest items are of a category."""

    category: str
    count: int


class Index(pydantic.BaseModel):
    """The version of an index that answered."""

    catalogue: str
    version: int
    model: str | None = pydantic.Field(description="Hash of the weights.")
    similarity: Literal["cosine", "dot", "euclidean"]


class Found(pydantic.BaseModel):
    """The answer of a search."""

    results: list[Result]
    facets: list[Facet] | None = None
    query: str = pydantic.Field(description="Names the query in feedback: an id, words, or a hash.")
    index: Index


class Embedded(pydantic.BaseModel):
    """An image's embedding."""

    vector: list[float]
    index: Index


class Info(Index):
    """What is served."""

    catalogues: list[str]
    items: int
    dimensions: int
    recall: float = pydantic.Field(description="Share of the nearest items that the index finds.")
    recall_at: int = pydantic.Field(description="The number of nearest items that recall is of.")
    feedback: bool = pydantic.Field(description="Whether judgments are recorded.")
    text: bool = pydantic.Field(description="Whether searches by words are answered.")


class Vote(pydantic.BaseModel):
    """A judgment of one result."""

    query: str = pydantic.Field(min_length=1, max_length=1024)
    id: str = pydantic.Field(min_length=1, max_length=1024)
    good: bool
    rank: int = pydantic.Field(ge=1, le=1000)
    score: float | None = pydantic.Field(None, allow_inf_nan=False)


class Status(pydantic.BaseModel):
    """The state of a server."""

    status: str


ERRORS = {
    status: {
        "model": Problem,
        "description": http.HTTPStatus(status).phrase,
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status in (400, 401, 404, 408, 413, 415, 421, 422, 503)
}
