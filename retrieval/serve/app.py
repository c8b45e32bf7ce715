"""The API and the page, as a FastAPI application over a `Searcher`."""

import asyncio
import contextlib
import hashlib
import os
import signal
import time
import urllib.parse
from typing import Annotated, Literal

import fastapi
import numpy as np
import pydantic
import pydantic_core
import python_multipart.exceptions
from fastapi import Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette import convertors
from starlette.exceptions import HTTPException

from retrieval.evaluation import feedback
from retrieval.serve import limits, schemas
from retrieval.serve.searcher import Searcher
from retrieval.serve.served import Served


class _Anything(convertors.PathConvertor):
    """An id in a path: unlike those of `path`, it may hold line breaks."""

    regex = r"[\s\S]+"


convertors.register_url_convertor("anything", _Anything())

STATIC = os.path.join(os.path.dirname(__file__), "static")
DAY = "private, max-age=86400"
LONGEST = 1024  # characters of an id or a category

Text = Annotated[str, pydantic.Field(max_length=LONGEST)]
Id = Annotated[str, Path(min_length=1, max_length=LONGEST)]


class ById(pydantic.BaseModel):
    """A search for items like one of the catalogue."""

    model_config = pydantic.ConfigDict(extra="forbid")
    id: str = pydantic.Field(min_length=1, max_length=LONGEST)


class ByText(pydantic.BaseModel):
    """A search by words, where the index's model has a text tower."""

    model_config = pydantic.ConfigDict(extra="forbid")
    text: Annotated[
        str,
        pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST),
    ]


class ByVector(pydantic.BaseModel):
    """A search by an embedding of the index's model."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    vector: list[Annotated[float, pydantic.Field(allow_inf_nan=False, ge=-1e6, le=1e6)]] = (
        pydantic.Field(min_length=1, max_length=65536)
    )


_IMAGE = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "format": "binary"}},
        }
    }
}
_QUERIES = {"vector": ByVector, "text": ByText, "id": ById}  # by the key that only they have
_JSON = {
    "application/json": {
        "schema": {"anyOf": [query.model_json_schema() for query in _QUERIES.values()]}
    }
}


def create(searcher: Searcher, feedback_file: str = "") -> fastapi.FastAPI:
    """Returns the application.

    Args:
      searcher: the catalogues to serve.
      feedback_file: JSONL file that judgments are appended to; '' to take none.
    """

    @contextlib.asynccontextmanager
    async def life(app):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
            loop.add_signal_handler(signal.SIGHUP, searcher.reload)
        async with searcher.running():
            yield

    app = fastapi.FastAPI(
        title="Prototrain search",
        version="1",
        description="Finds the items of a catalogue that look like an image, or as words say.",
        lifespan=life,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        responses=schemas.ERRORS,
    )
    app.add_middleware(
        limits.Guard, limits=searcher.limits, queue=searcher.queue, metrics=searcher.metrics
    )
    _errors(app, searcher)
    _api(app, searcher, feedback_file)
    _probes(app, searcher)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/", include_in_schema=False)
    def page():
        return FileResponse(os.path.join(STATIC, "index.html"))

    return app


def _errors(app, searcher):
    def answer(status, reason, detail, retry_after=None):
        searcher.metrics.refusals.labels(reason).inc()
        return schemas.problem(schemas.Refused(status, reason, detail, retry_after))

    # `Refused` is answered by the guard, which also reads the rest of the body.

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        return answer(422, "request", _said(error.errors()))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException):
        response = answer(error.status_code, "request", str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception):
        return answer(500, "bug", "The server failed; its log says why.")


def _said(errors):
    """The first of pydantic's errors, in one line and without the value."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    return f"{place}: {first['msg']}" if place else first["msg"]


def _api(app, searcher, feedback_file):
    v1 = fastapi.APIRouter(prefix="/v1")

    async def served(
        catalogue: Annotated[Text, Query(description="One of several.")] = "",
    ) -> Served:
        return searcher.served(catalogue)

    InUse = Annotated[Served, Depends(served)]

    def shown(served, item):
        """An item with the address of its image in place of the path."""
        item, address = dict(item), None
        if item.pop("path"):
            address = f"/v1/items/{urllib.parse.quote(item['id'], safe='')}/image"
            if len(searcher.shelves) > 1:
                address += f"?catalogue={urllib.parse.quote(served.name, safe='')}"
        return item | {"image": address}

    @v1.post(
        "/search",
        response_model=schemas.Found,
        openapi_extra={"requestBody": {"required": True, "content": _IMAGE | _JSON}},
    )
    async def search(
        request: Request,
        served: InUse,
        k: Annotated[int, Query(ge=1, le=100, description="Number of results.")] = 10,
        category: Annotated[Text | None, Query(description="Only its items.")] = None,
        threshold: Annotated[
            float | None, Query(allow_inf_nan=False, description="Least score of a result.")
        ] = None,
        group_by: Annotated[
            Literal["product"] | None, Query(description="Only the best item of each.")
        ] = None,
        facets: Annotated[bool, Query(description="Count the nearest items' categories.")] = False,
    ):
        """Finds the items nearest to an image, words, an item of the catalogue, or an embedding.

        An item is not among its own results.
        """
        start, status = time.perf_counter(), "refused"
        try:
            async with _query(request) as given:
                with searcher.queue:
                    find = searcher.finder(
                        served,
                        k,
                        facets=facets,
                        category=category,
                        threshold=threshold,
                        by_product=group_by == "product",
                    )
                    name, (found, counts) = await _found(searcher, served, given, find)
            status = "answered"
        finally:
            searcher.metrics.requests.labels(status).observe(time.perf_counter() - start)
        results = [shown(served, one) | {"score": round(one["score"], 6)} for one in found]
        found = {"results": results, "facets": counts, "query": name, "index": served.about}
        return _answer(schemas.Found, found)

    @v1.post(
        "/embed",
        response_model=schemas.Embedded,
        openapi_extra={"requestBody": {"required": True, "content": _IMAGE}},
    )
    async def embed(request: Request, served: InUse):
        """Returns the embedding of an image."""
        async with _query(request, json=False) as given:
            with searcher.queue:
                _, vector = await searcher.image(served, given)
        found = {"vector": vector.tolist(), "index": served.about}
        return _answer(schemas.Embedded, found)

    @v1.get("/items/{id:anything}/image", responses={200: {"content": {"image/jpeg": {}}}})
    async def image(
        id: Id,
        served: InUse,
        request: Request,
        size: Annotated[int, Query(ge=1, le=1024, description="Longer side in pixels.")] = 256,
    ):
        """Returns an item's image as a JPEG file."""
        longer = f"{id}/image"  # an id may end like the address of an image
        if request.scope["raw_path"].lower().endswith(b"%2fimage"):
            return await item(longer, served)
        try:
            about = await searcher.thread(served.item, id)
        except schemas.Refused:
            with contextlib.suppress(schemas.Refused):
                return await item(longer, served)
            raise
        found = await searcher.thread(served.images.find, about["path"])
        if found is None:
            raise schemas.Refused(404, "image", f"item {id!r} has no image here")
        real, tag = found
        headers = {"ETag": f'"{tag}-{size}"', "Cache-Control": "private, no-cache"}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        try:
            made = await searcher.thread(served.images.make, real, tag, size)
        except ValueError as error:
            raise schemas.Refused(404, "image", f"the image of {id!r}: {error}") from None
        return Response(made, media_type="image/jpeg", headers=headers)

    @v1.get("/items/{id:anything}", response_model=schemas.Item)
    async def item(id: Id, served: InUse):
        """Returns an item of the catalogue."""
        return _answer(schemas.Item, shown(served, await searcher.thread(served.item, id)))

    @v1.get("/info", response_model=schemas.Info)
    async def info(served: InUse):
        """Says what is served."""
        manifest = served.catalogue.manifest
        return _answer(
            schemas.Info,
            {
                **served.about,
                "catalogues": list(searcher.shelves),
                "items": manifest["count"],
                "dimensions": manifest["dimensions"],
                "recall": manifest["tuned"]["recall"],
                "recall_at": manifest["tuned"]["k"],
                "feedback": bool(feedback_file),
                "text": served.texts is not None,
            },
        )

    @v1.post("/feedback", status_code=204, response_class=Response)
    async def judge(vote: schemas.Vote, served: InUse):
        """Records whether a result was right."""
        if not feedback_file:
            raise schemas.Refused(404, "feedback", "this server takes no feedback (--feedback)")
        item = await searcher.thread(served.item, vote.id)
        about = {"catalogue": served.name, "version": served.about["version"]}
        line = vote.model_dump() | {"product": item["product"], "model": served.about["model"]}
        await searcher.thread(feedback.append, feedback_file, line | about)

    app.include_router(v1)


def _answer(model, values):
    """A response checked once: FastAPI would check it again."""
    made = model.model_validate(values)
    return Response(made.model_dump_json(), media_type="application/json")


@contextlib.asynccontextmanager
async def _query(request, json=True):
    """Yields the query in a request's body: a file, `ById`, `ByText` or `ByVector`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" and json:
        body = await request.body()
        try:
            values = pydantic_core.from_json(body)
            given = values if isinstance(values, dict) else {}
            kind = next((kind for key, kind in _QUERIES.items() if key in given), ById)
            query = kind.model_validate(values)
        except pydantic.ValidationError as error:
            said = _said(error.errors(include_url=False, include_input=False))
            raise schemas.Refused(422, "request", said) from None
        except ValueError as error:
            raise schemas.Refused(422, "request", f"not JSON: {error}") from None
        yield query
    elif kind == "multipart/form-data":
        try:
            form = await request.form(max_files=1, max_fields=10, max_part_size=65536)
        except python_multipart.exceptions.FormParserError as error:
            # Which newer versions of Starlette do by themselves.
            raise schemas.Refused(400, "request", f"Invalid multipart data: {error}") from None
        try:
            file = form.get("image")
            if file is None or isinstance(file, str) or len(form) > 1:
                raise schemas.Refused(422, "request", "send one file, in the field image")
            yield file.file
        finally:
            await form.close()
    else:
        wanted = f"multipart/form-data{' or application/json' * json}"
        raise schemas.Refused(415, "type", f"the Content-Type must be {wanted}")


async def _found(searcher, served, given, find):
    """(name of the query; what `find` returns for it, called in a thread)."""
    if isinstance(given, ById):
        return given.id, await searcher.thread(find, given.id)
    if isinstance(given, ByText):
        return given.text, await searcher.text(served, given.text, find)
    if isinstance(given, ByVector):
        vector = np.array(given.vector, np.float32)
        name = hashlib.sha256(vector).hexdigest()
        return f"sha256:{name}", await searcher.thread(find, vector)
    digest, found = await searcher.image(served, given, find)
    return f"sha256:{digest}", found


def _probes(app, searcher):
    @app.get("/healthz", response_model=schemas.Status)
    async def alive():
        """Says that the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", response_model=schemas.Status)
    async def ready():
        """Says whether searches are answered: index and model are open, agree, and are warm."""
        if not searcher.ready:
            raise schemas.Refused(503, "ready", "The server starts or ends.", retry_after=1)
        return {"status": "ready"}

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def metrics():
        """The figures that Prometheus reads."""
        return Response(searcher.metrics.page(), media_type="text/plain; version=0.0.4")
