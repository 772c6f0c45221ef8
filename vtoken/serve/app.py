"""The routes: chat completions, models, health and metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from vtoken.errors import VtokenError
from vtoken.serve import errors
from vtoken.serve.answering import Answering
from vtoken.serve.body import Asked, parse
from vtoken.serve.desk import CLOSING, Desk, Job
from vtoken.serve.errors import Refused
from vtoken.serve.metrics import Metrics, media_type
from vtoken.serve.replies import Done, Reply, event
from vtoken.serve.settings import Settings
from vtoken.version import __version__

LEFT = 499  # the client is gone before there is an answer


class Service:
    """What the routes share.

    Attributes:
        answering: the model and the kept videos.
        desk: the queue in front of it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.started = settings, int(time.time())
        self.answering = Answering(settings)
        self.desk = Desk(settings.queue)
        store = self.answering.store
        self.metrics = Metrics(lambda: self.desk.taken, lambda: self.desk.running, lambda: len(store))

    def close(self) -> None:
        """End the queue and remove the files."""
        self.desk.close()
        self.answering.close()


def application(service: Service) -> FastAPI:
    """The routes of a service."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        yield
        sweeping.cancel()

    app = FastAPI(title="vtoken", version=__version__, lifespan=life)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        later = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return JSONResponse(errors.body(str(error), error.status, error.param, error.code), error.status, later)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(errors.body(str(error.detail), error.status_code), error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        refusal = service.answering.refused(error)
        return JSONResponse(errors.body(str(refusal), refusal.status), refusal.status)

    @app.get("/health")
    async def health() -> Response:
        """200 while requests are taken, 503 at the end."""
        return JSONResponse({"status": "closing"}, 503) if service.desk.closed else JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(service.metrics.text(), media_type=media_type())

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The model that is served."""
        authorize(request, service.settings.api_key)
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        """The model of a name."""
        authorize(request, service.settings.api_key)
        if name != service.settings.name:
            raise Refused(f"model {name!r:.160} is not served here", 404, "model", "model_not_found")
        return _model(service)

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        """Answer a question about videos."""
        start, status = time.monotonic(), 500
        try:
            authorize(request, service.settings.api_key)
            response = await _complete(service, request, start)
            status = response.status_code
            return response
        except Refused as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = LEFT
            raise
        finally:
            service.metrics.ended(status)

    return app


def authorize(request: Request, key: str) -> None:
    """Refuse a request without the server's key.

    Raises:
        Refused: the key is missing or another one (401).
    """
    if not key:
        return
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    both = given.strip().encode("latin-1"), key.encode()  # headers are bytes, which Starlette reads as Latin-1
    digests = [hashlib.sha256(one).digest() for one in both]
    if not hmac.compare_digest(*digests) or kind.lower() != "bearer":  # digests hide the length of the key
        raise Refused("the API key is missing or wrong", 401, code="invalid_api_key")


async def _complete(service: Service, request: Request, start: float) -> Response:
    place = service.desk.enter()
    try:
        content = await _body(request, service.settings)
        asked = await run_in_threadpool(_parsed, content, service)
    except BaseException:
        place.leave()
        raise
    del content
    job = Job(place.leave)
    gone = asyncio.create_task(_watch(request, job))
    items, reply = job.items(), Reply(service.settings.name)
    try:
        await _submit(service, job, asked)
        first = await anext(items)
        service.metrics.first.observe(time.monotonic() - start)
        if asked.stream:
            events = _events(service, job, _after(first, items), reply, asked, gone, start)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        done = first if isinstance(first, Done) else [item async for item in items][-1]
        found = JSONResponse(reply.whole(_noted(service, job, done, start)))
        gone.cancel()
        return found
    except BaseException:
        job.stop.set()
        gone.cancel()
        raise


async def _after(first: Any, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in items:
        yield item


async def _body(request: Request, settings: Settings) -> bytes:
    """The body, within the limits of size and time."""
    told = request.headers.get("Content-Length", "")
    large = Refused(f"the body is larger than {settings.body_bytes:,} bytes (--max-upload)", 413, code="too_large")
    if told.isdigit() and int(told) > settings.body_bytes:
        raise large

    async def read() -> bytes:
        found = bytearray()
        async for piece in request.stream():
            found += piece
            if len(found) > settings.body_bytes:
                raise large
        return bytes(found)

    try:
        return await asyncio.wait_for(read(), settings.body_seconds)
    except asyncio.TimeoutError as error:
        raise Refused(f"the body was not there after {settings.body_seconds:g} seconds", 408) from error


def _parsed(content: bytes, service: Service) -> Asked:
    try:
        return parse(content, service.settings)
    except VtokenError as error:
        raise service.answering.refused(error) from error


async def _submit(service: Service, job: Job, asked: Asked) -> None:
    """Fetch the files of a request and put it into the queue; its place is free again when it has run."""
    try:
        fetched = await run_in_threadpool(service.answering.fetch, asked, job.stop)
    except BaseException as error:
        job.leave()
        if isinstance(error, Exception):
            raise service.answering.refused(error) from error
        raise
    service.desk.submit(job, lambda: service.answering.run(asked, fetched, job.stop))


async def _watch(request: Request, job: Job) -> None:
    """Stop the job of a client that has left."""
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.stop.set()


async def _events(
    service: Service,
    job: Job,
    items: AsyncIterator[Any],
    reply: Reply,
    asked: Asked,
    gone: asyncio.Task[None],
    start: float,
) -> AsyncIterator[str]:
    """The events of a stream; an error behind the first text comes as an event too."""
    begun = False

    try:
        async for item in items:
            if not isinstance(item, Done):
                yield event(reply.delta(item, not begun))
                begun = True
                continue
            done = _noted(service, job, item, start)
            if not begun:
                yield event(reply.delta("", True))
            yield event(reply.last(done))
            if asked.include_usage:
                yield event(reply.usage(done))
        yield event("[DONE]")
    except Refused as error:
        yield event(errors.body(str(error), error.status, error.param, error.code))
    finally:
        job.stop.set()
        gone.cancel()


def _noted(service: Service, job: Job, done: Done, start: float) -> Done:
    """The end of an answer, counted."""
    service.metrics.answered(done)
    service.metrics.whole.observe(time.monotonic() - start)
    return replace(done, cut=CLOSING) if job.cut and done.reason == "length" else done


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(10)
        await run_in_threadpool(service.answering.sweep)


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.settings.name, "object": "model", "created": service.started, "owned_by": "vtoken"}
