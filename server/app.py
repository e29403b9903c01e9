"""The application: routes, middleware, errors, lifespan - and nothing else."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.routing import Route as StarletteRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tinylcm.clock import Clock, SystemClock
from tinylcm.errors import TinyLCMError

from . import retention
from .config import DATABASE_FILE, ServerConfig
from .db import Database
from .errors import NotFoundError, RangeNotSatisfiableError, TinySphereError, problem_of
from .jobs import Lease, Work, Worker
from .mlflowapi import Mlflow, check_url
from .outbox import JOB
from .requestid import RequestIds, header_of_name, name_of
from .requestid import current as request_id
from .routes import (
    admin,
    blobs,
    commands,
    deployments,
    devices,
    drift,
    events,
    fleet,
    health,
    logs,
    machines,
    models,
    pages,
)
from .routes.table import ProblemDocument, Route, Server, endpoint, openapi
from .s3store import S3Store
from .store import FolderStore, Store
from .tracking import Tracking
from .trust import pin_folder

_log = logging.getLogger("tinysphere")
STATIC: Final = Path(__file__).parent / "static"
ROUTES: Final[tuple[Route, ...]] = (
    *fleet.ROUTES,  # before the devices, one of whom could be called `expected`
    *devices.ROUTES,
    *models.ROUTES,
    *blobs.ROUTES,
    *deployments.ROUTES,
    *commands.ROUTES,
    *drift.ROUTES,
    *health.ROUTES,
    *events.ROUTES,
    *logs.ROUTES,
    *admin.ROUTES,
    *machines.ROUTES,
)
SECURITY_HEADERS: Final = {
    # uPlot sets sizes through the CSSOM, which needs no 'unsafe-inline'.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


_ALWAYS: Final = tuple((name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items())
_OF_API: Final = (*_ALWAYS, (b"cache-control", b"no-store"))
_Headers = list[tuple[bytes, bytes]]


def _secured(path: str, headers: _Headers) -> _Headers:
    """Headers with those that are missing among the security headers."""
    there = {name.lower() for name, _ in headers}
    added = _OF_API if path.startswith("/api/") else _ALWAYS
    return [*headers, *(item for item in added if item[0] not in there)]


class SecurityHeaders:
    """Put the security headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _secured(scope["path"], message["headers"])
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _problem(status: int, slug: str, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    document = ProblemDocument(f"/problems/{slug}", title, status, detail)
    return Response(msgspec.json.encode(document), status, headers, media_type="application/problem+json")


async def _known_error(request: Request, error: Exception) -> Response:
    problem, headers = problem_of(error), {}
    if retry_after_s := getattr(error, "retry_after_s", None):
        headers["Retry-After"] = str(round(retry_after_s))
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiableError):
        headers["Content-Range"] = f"bytes */{error.size}"
    if problem.status in (400, 409, 413, 415, 507):
        headers["Connection"] = "close"  # the rest of the body is not read
    return _problem(problem.status, problem.slug, problem.title, str(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    titles = {
        404: ("not-found", "There is no such thing"),
        405: ("method-not-allowed", "The method is not offered here"),
    }
    slug, title = titles.get(error.status_code, ("http", error.detail))
    detail = "there is nothing at this address; see /openapi.json" if error.status_code == 404 else error.detail
    return _problem(error.status_code, slug, title, detail, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    detail = f"an unexpected error; the server's log has it under {request_id.get()}"
    return _problem(500, "internal", "The server is at fault", detail)


class Direct:
    """Serves the addresses that have no parts to be parsed, without asking every route whether it is meant.

    It is the outermost layer: it gives such a request its name, and its answer the headers that all have.

    Args:
        app: everything else.
        endpoints: by method and path.
        answer_error: what an error of an endpoint is answered with.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]],
        answer_error: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app, self._endpoints, self._answer_error = app, endpoints, answer_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, or pass it on."""
        serve = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if serve is None:
            await self._app(scope, receive, send)
            return
        request, name = Request(scope, receive), name_of(scope)
        token = request_id.set(name.decode())
        try:
            try:
                response = await serve(request)
            except Exception as error:
                response = await self._answer_error(request, error)
            response.raw_headers = [*_secured(scope["path"], response.raw_headers), header_of_name(name)]
            await response(scope, receive, send)
        finally:
            request_id.reset(token)


class _Application(Starlette):
    """Starlette answers unexpected errors outside of all its middleware: names and headers go around that too."""

    def __init__(self, direct: Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]], **kept: Any) -> None:
        self._direct = direct
        super().__init__(**kept)

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's own, and ours around it."""
        return Direct(RequestIds(SecurityHeaders(super().build_middleware_stack())), self._direct, _answer_error)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, TinySphereError | TinyLCMError):
        return await _known_error(request, error)
    if isinstance(error, HTTPException):
        return await _http_error(request, error)
    return await _unexpected(request, error)


@functools.cache
def _document() -> bytes:
    """The OpenAPI document."""
    return msgspec.json.encode(openapi(ROUTES))


def _open_store(config: ServerConfig, db: Database) -> Store:
    folder = config.data / "blobs"
    is_bucket = bool(config.s3)
    store: Store = (
        S3Store(config.s3, folder, db.instance, insecure=config.insecure) if is_bucket else FolderStore(folder)
    )
    if config.alone:
        store.clean()
    return store


def _work(server: Server) -> dict[str, Work]:
    """What is done beside the requests, by one process at a time."""
    config, store, clock = server.config, server.store, server.clock

    def sweep(lease: Lease) -> None:
        gone = retention.sweep(lease, store, config.keep, clock.wall_s())
        if gone:
            _log.info("retention: %s", ", ".join(f"{count} of {name}" for name, count in sorted(gone.items())))

    return {"retention": Work(sweep, config.retention_every_s)}


def _mirror(server: Server) -> dict[str, Work]:
    """MLflow's job: in a thread of its own, for MLflow may be slow and the other jobs are not to wait for it."""
    config = server.config
    tracking = Tracking(Mlflow(config.mlflow), server.store, config.url, server.clock, promote=config.mlflow_promote)
    return {JOB: Work(tracking.run, config.mlflow_every_s)}


def create_app(config: ServerConfig, clock: Clock | None = None) -> Starlette:
    """Build the application on a data folder that this process owns.

    Raises:
        StartError: the database cannot be opened, or the address of MLflow is none.
        DeviceError: the folder cannot be written.
    """
    if config.mlflow:
        check_url(config.mlflow, insecure=config.insecure)
    db = Database(
        config.database or config.data / DATABASE_FILE,
        queue_max=config.writer_queue_max,
        group_max=config.writer_group_max,
        timeout_s=config.writer_timeout_s,
    )
    try:
        store = _open_store(config, db)
    except Exception:
        db.close()
        raise
    clock = clock or SystemClock()
    pin_folder(db, config.data / "roots", clock.wall_s())
    server = Server.of(config, db, store, clock)
    mirrors = [_mirror(server)] if config.mlflow else []

    async def serve_document(request: Request) -> Response:
        return Response(await run_in_threadpool(_document), media_type="application/json")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        workers = [Worker(db, work, lease_s=config.job_lease_s) for work in [_work(server), *mirrors]]
        for worker in workers:
            worker.start()
        yield
        for worker in workers:
            await run_in_threadpool(worker.close)
        await run_in_threadpool(db.close)

    routes: list[BaseRoute] = [
        StarletteRoute(route.path, endpoint(server, route), methods=[route.method]) for route in ROUTES
    ]
    dashboard = pages.Pages(server)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and "text/html" in request.headers.get("accept", ""):
            return dashboard.problem(NotFoundError("there is no page at this address"))
        return await _http_error(request, error)

    handlers: dict[Any, Any] = {
        TinySphereError: _known_error,
        TinyLCMError: _known_error,
        HTTPException: http_error,
        Exception: _unexpected,
    }
    app = _Application(
        {(route.method, route.path): endpoint(server, route) for route in ROUTES if "{" not in route.path},
        routes=[
            *routes,
            StarletteRoute("/openapi.json", serve_document),
            *pages.routes(dashboard),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    app.state.server = server
    return app
