"""One typed table of routes: the application and its OpenAPI 3.1 document are both made from it."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any, Final, Literal, TypeVar, cast

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message
from tinylcm.clock import Clock

from .. import __version__
from ..auth import SCOPES, Keys, Principal, authenticate, authenticate_session, require
from ..config import ServerConfig
from ..db import Connection, Database
from ..errors import (
    PROBLEMS,
    BadRequestError,
    BusyError,
    ForbiddenError,
    InvalidError,
    TooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    problem_of,
)
from ..followers import Followers
from ..idempotency import once
from ..instruments import Requests
from ..ratelimit import RateLimit
from ..store import Store

API: Final = "/api/v1"
SESSION_COOKIE: Final = "tinysphere_session"
SAFE_METHODS: Final = ("GET", "HEAD")
PAGE_DEFAULT: Final = 50
BODY_FREE_BYTES: Final = 16 << 10  # of each body: who sends little is served whatever the others send
_T = TypeVar("_T")


class Room:
    """Bytes of memory for bodies that are being read, whoever sends them. One thread uses it: the event loop's."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self.used = bytes_max, 0

    def take(self, count: int) -> None:
        """Take some.

        Raises:
            BusyError: there is no room; a single body always finds some.
        """
        if self.used and self.used + count > self._bytes_max:
            raise BusyError("too many large bodies are being read; try again", retry_after_s=2)
        self.used += count

    def give(self, count: int) -> None:
        """Give some back."""
        self.used -= count


@dataclass(frozen=True, slots=True)
class Server:
    """What every handler may use; `stopping` is set when the process has been told to end, and `remembered` is what
    handlers keep for a moment, so that they need not look again."""

    config: ServerConfig
    db: Database
    store: Store
    clock: Clock
    devices: RateLimit
    users: RateLimit
    failures: RateLimit
    followers: Followers
    bodies: Room
    keys: Keys = field(default_factory=Keys)
    requests: Requests = field(default_factory=Requests)
    stopping: threading.Event = field(default_factory=threading.Event)
    remembered: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ServerConfig, db: Database, store: Store, clock: Clock) -> Server:
        """With the configuration's limits."""
        return cls(
            config,
            db,
            store,
            clock,
            RateLimit(config.device_requests_per_s, config.burst),
            RateLimit(config.user_requests_per_s, config.burst),
            RateLimit(config.failures_per_s, max(5, config.burst // 20)),
            Followers(config.events_connections_max, config.events_connections_each_max),
            Room(config.bodies_bytes_max),
        )


@dataclass(slots=True)
class Call:
    """One authenticated request."""

    server: Server
    request: Request
    principal: Principal | None
    body: Any = None

    @property
    def now_s(self) -> float:
        """Server time."""
        return self.server.clock.wall_s()

    @property
    def who(self) -> str:
        """Who asks, for the audit."""
        return self.principal.who if self.principal is not None else "nobody"

    @property
    def if_match(self) -> str | None:
        """The ETag of what the caller has seen."""
        value = self.request.headers.get("if-match")
        return None if value is None else value[:1000]

    def header(self, name: bytes) -> str:
        """A header by its name in lower case, or empty: quicker than Starlette's, for what every request asks."""
        return header_of(self.request, name)

    def path(self, name: str) -> str:
        """A part of the address."""
        return str(self.request.path_params[name])

    def number_in_path(self, name: str) -> int:
        """A number in the address.

        Raises:
            BadRequestError: it is none.
        """
        text = self.path(name)
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BadRequestError(f"{name} in the address is no number")
        return int(text)

    def text(self, name: str) -> str | None:
        """A query parameter."""
        value = self.request.query_params.get(name)
        if value is not None and len(value) > 1000:
            raise BadRequestError(f"the query's {name} is longer than 1000 characters")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A query parameter that lists names with commas."""
        return tuple(item.strip() for item in (self.text(name) or "").split(",") if item.strip())

    def number(self, name: str) -> float | None:
        """A query parameter that is a finite number."""
        value = self.text(name)
        if value is None:
            return None
        if not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,9})?", value):
            raise BadRequestError(f"the query's {name} is no number")
        return float(value)

    def natural(self, name: str) -> int | None:
        """A query parameter that is a whole number, from 0 on."""
        value = self.text(name)
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise BadRequestError(f"the query's {name} is no whole number")
        return int(value)

    def limit(self, default: int = PAGE_DEFAULT, most: int | None = None) -> int:
        """How many items to answer, within 1 and what the server allows."""
        most = self.server.config.page_items_max if most is None else most
        value = self.text("limit")
        if value is None:
            return min(default, most)
        if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= most:
            raise BadRequestError(f"the query's limit: expected 1 to {most}")
        return int(value)

    async def run(self, job: Callable[..., _T], *arguments: object) -> _T:
        """Call the logic in a worker thread."""
        return await run_in_threadpool(job, *arguments)

    async def raw_body(self, bytes_max: int) -> bytes:
        """The body, read no further than its bound.

        Raises:
            TooLargeError: it is longer, or says so.
        """
        announced, first = header_of(self.request, b"content-length"), None
        if announced.isdigit() and int(announced) <= min(bytes_max, BODY_FREE_BYTES):
            first = _received(self.request)
            if first is not None and first["type"] == "http.request" and not first.get("more_body", False):
                return bytes(first.get("body", b""))  # as nearly every body comes: whole, with its head
        pieces: list[bytes] = []
        room, total, counted = self.server.bodies, 0, 0
        try:
            async for piece in bounded_body(self.request, bytes_max, self.server.config.body_timeout_s, first):
                pieces.append(piece)
                total += len(piece)
                if total - counted > BODY_FREE_BYTES:
                    room.take(total - BODY_FREE_BYTES - counted)
                    counted = total - BODY_FREE_BYTES
        finally:
            room.give(counted)
        return b"".join(pieces)


def header_of(request: Request, name: bytes) -> str:
    """A request's header by its name in lower case, or empty."""
    for found, value in request.scope["headers"]:
        if found == name:
            return str(value, "latin-1")
    return ""


class Ready(Response):
    """An answer whose headers are bytes already."""

    def __init__(self, body: bytes, headers: Sequence[tuple[bytes, bytes]], status: int = 200) -> None:
        self.status_code, self.body, self.background = status, body, None
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]


def _received(request: Request) -> Message | None:
    """What has come of the body already, as of small ones all has: no timer is needed for that."""
    coroutine: Any = request.receive()
    if not isinstance(coroutine, CoroutineType):
        return None
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("Message", done.value)
    coroutine.close()  # it would wait
    return None


async def bounded_body(
    request: Request, bytes_max: int, timeout_s: float, first: Message | None = None
) -> AsyncIterator[bytes]:
    """The body's pieces, refused as soon as they are too many, before that if the length is announced.

    Args:
        first: what was received of it already.

    Raises:
        TooLargeError: more than `bytes_max`.
        BadRequestError: the connection ended, or paused for longer than `timeout_s`.
    """
    announced = header_of(request, b"content-length")
    if announced.isdigit() and int(announced) > bytes_max:
        raise TooLargeError(f"the body has {announced} bytes, at most {bytes_max} are taken here")
    total = 0
    while True:
        message, first = first or _received(request), None
        if message is None:
            try:
                async with asyncio.timeout(timeout_s):
                    message = await request.receive()
            except TimeoutError:
                raise BadRequestError(f"nothing more of the body came within {timeout_s:g} s; send it again") from None
        if message["type"] != "http.request":
            raise BadRequestError("the connection ended inside the body")
        piece = message.get("body", b"")
        total += len(piece)
        if total > bytes_max:
            raise TooLargeError(f"the body is longer than the {bytes_max} bytes taken here")
        if piece:
            yield piece
        if not message.get("more_body", False):
            return


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler answers: a value of the route's type, or a ready response."""

    value: object = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    response: Response | None = None


@dataclass(frozen=True, slots=True)
class Param:
    """A query parameter."""

    name: str
    kind: Literal["string", "integer", "number"] = "string"
    about: str = ""


Handler = Callable[[Call], Awaitable[Answer]]
LIST_PARAMS: Final = (
    Param("cursor", about="`next` of the page before"),
    Param("limit", "integer", "items in the page"),
)


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    Attributes:
        scope: `public`, `device`, `any` (device or user) or a scope of users.
        body: type of the JSON body; None for no or a raw body.
        raw: media types of a raw body, which the handler reads itself, with commas.
        answer: type of the answer; None for bytes.
        media: media types of the answer, with commas.
        statuses: every good status with what it means.
        problems: statuses of errors beside those that any route may give.
        asks_again: the handler checks a device's key itself, in its transaction, so that here it is enough that the key
            was right a moment ago.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: str
    answer: Any = None
    body: Any = None
    raw: str = ""
    media: str = "application/json"
    query: tuple[Param, ...] = ()
    headers: tuple[str, ...] = ()
    statuses: Mapping[int, str] = field(default_factory=lambda: {200: "done"})
    problems: tuple[int, ...] = ()
    asks_again: bool = False

    @property
    def status(self) -> int:
        """The usual good status."""
        return next(iter(self.statuses))


def identify(call: Call, route: Route) -> None:
    """Find out who asks and whether that is allowed; runs in a worker thread.

    Raises:
        UnauthorizedError, ForbiddenError: with what is missing.
    """
    header = call.header(b"authorization")
    if header:
        scheme, _, bearer = header.partition(" ")
        if scheme.lower() != "bearer" or not bearer:
            raise UnauthorizedError("expected `Authorization: Bearer TOKEN`")
        call.principal = authenticate(call.server.db, bearer.strip(), call.now_s)
    else:
        cookie = call.request.cookies.get(SESSION_COOKIE, "")
        if not cookie:
            raise UnauthorizedError("send `Authorization: Bearer TOKEN`; `tinysphere token create` makes one")
        call.principal = authenticate_session(call.server.db, cookie, call.now_s)
        # A page of another site can make a browser send the cookie, but not this header.
        if route.method not in SAFE_METHODS and call.request.headers.get("x-requested-with") != "tinysphere":
            raise ForbiddenError("changes by a signed-in browser need the header X-Requested-With: tinysphere")
    if route.scope == "any":
        if call.principal.kind == "user":
            require(call.principal, "read")
    else:
        require(call.principal, route.scope)


async def _admit(call: Call, route: Route) -> None:
    """Find out who asks, as often as they may.

    Raises:
        TooManyRequestsError: with the seconds to wait.
        UnauthorizedError, ForbiddenError: with what is missing.
    """
    server, now_s = call.server, call.server.clock.monotonic_s()
    address = claimant(call.request)
    # Also a right key waits: the answer would tell one that was guessed.
    _refuse(server.failures.wait_s(address, now_s), "this address has failed to say who it is")
    known = server.keys.find(call.header(b"authorization").removeprefix("Bearer ")) if route.asks_again else None
    call.principal = known
    if known is None:
        try:
            await run_in_threadpool(identify, call, route)
        except UnauthorizedError:
            server.failures.take(address, now_s)
            raise
    principal = call.principal
    assert principal is not None
    if known is None and route.asks_again:
        server.keys.remember(principal)
    limit = server.devices if principal.kind == "device" else server.users
    _refuse(limit.take(principal.id, now_s), f"this {principal.kind} asks")


def claimant(request: Request) -> str:
    """Whose failures count together: an address, and the device that it says to be.

    Many devices may have one address, behind a router or a proxy: one with a revoked key must not lock out the others.
    """
    client, bearer = request.scope.get("client"), header_of(request, b"authorization").rpartition(" ")[2]
    device = bearer.partition(".")[0][:64] if "." in bearer else ""
    return f"{client[0] if client else ''} {device}"


def note_failure(call: Call) -> None:
    """Count a request whose key was over when the handler asked again."""
    assert call.principal is not None
    call.server.keys.forget(call.principal.id)
    call.server.failures.take(claimant(call.request), call.server.clock.monotonic_s())


def _refuse(wait_s: float, who: str) -> None:
    if wait_s > 0.0:
        raise TooManyRequestsError(f"{who} too often; wait for Retry-After", retry_after_s=math.ceil(wait_s))


def endpoint(server: Server, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """The ASGI side of a row."""
    decoder = msgspec.json.Decoder(route.body) if route.body is not None else None

    async def serve(request: Request) -> Response:
        began_s, status = time.perf_counter(), 500
        try:
            answer = await respond(request)
            status = answer.status_code
            return answer
        except Exception as error:
            status = problem_of(error).status
            raise
        finally:
            server.requests.note(route.method, route.path, status, time.perf_counter() - began_s)

    async def respond(request: Request) -> Response:
        call = Call(server, request, None)
        if route.scope != "public":
            await _admit(call, route)
        if decoder is not None:
            raw = await call.raw_body(server.config.json_bytes_max)
            try:
                call.body = decoder.decode(raw)
            except msgspec.ValidationError as error:
                raise InvalidError(str(error)) from error
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise BadRequestError(f"the body is not JSON: {error}") from error
        answer = await route.handler(call)
        if answer.response is not None:
            return answer.response
        return Response(
            msgspec.json.encode(answer.value),
            status_code=answer.status or route.status,
            headers=dict(answer.headers),
            media_type="application/json",
        )

    return serve


async def created_once(
    call: Call, what: str, create_in: Callable[[Connection, Any, str, float], object], *, status: int = 201
) -> Answer:
    """Create something in a writing job; the same Idempotency-Key again answers what the first time did.

    Args:
        what: sets the requests of one kind apart from those of another.
        create_in: given the connection, the body, who asks and the time; returns the answer's value.
    """
    key = call.request.headers.get("idempotency-key")
    request = f"POST {what} ".encode() + msgspec.json.encode(call.body)
    now_s, who = call.now_s, call.who

    def create() -> bytes:
        def job(connection: Connection) -> bytes:
            return msgspec.json.encode(create_in(connection, call.body, who, now_s))

        return once(call.server.db, who, key, request, now_s, job)

    return Answer(msgspec.Raw(await call.run(create)), status)


def page_headers(call: Call, following: str | None) -> dict[str, str]:
    """The Link header of a list's page."""
    if following is None:
        return {}
    url = call.request.url.include_query_params(cursor=following)
    return {"Link": f'<{url.path}?{url.query}>; rel="next"'}


class ProblemDocument(msgspec.Struct, frozen=True):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str


def _path_parameters(path: str) -> list[dict[str, object]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _operation(route: Route, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    titles = {problem.status: problem.title for problem in PROBLEMS.values()}
    problems = set(route.problems) | {400, 503, 500}
    if route.scope != "public":
        problems |= {401, 403, 429}
    if route.body is not None or route.raw:
        problems |= {413, 422, 507}
    responses: dict[str, Any] = {}
    for status, about in route.statuses.items():
        content = {"schema": schemas[route.answer] if route.answer is not None else {"type": "string"}}
        responses[str(status)] = {"description": about, "content": dict.fromkeys(route.media.split(", "), content)}
    for status in sorted(problems):
        problem = {"schema": schemas[ProblemDocument]}
        responses[str(status)] = {"description": titles[status], "content": {"application/problem+json": problem}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}_{route.handler.__name__}",
        "responses": responses,
        "parameters": [
            *_path_parameters(route.path),
            *(
                {"name": param.name, "in": "query", "description": param.about, "schema": {"type": param.kind}}
                for param in route.query
            ),
            *({"name": name, "in": "header", "schema": {"type": "string"}} for name in route.headers),
        ],
        "security": [] if route.scope == "public" else [{"device" if route.scope == "device" else "token": []}],
    }
    if route.scope in SCOPES:
        operation["description"] = f"Needs the scope `{route.scope}`."
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[route.body]}}}
    elif route.raw:
        schema = {"schema": {"type": "object"} if route.answer is not None and route.raw == route.media else {}}
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(route.raw.split(", "), schema)}
    return operation


def _any_json(kind: type) -> dict[str, Any]:
    """`object` in a Struct stands for any JSON value."""
    if kind is object:
        return {"description": "any JSON value"}  # an empty schema would count as none
    raise TypeError(f"the OpenAPI document cannot describe {kind}")


def openapi(routes: tuple[Route, ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the table."""
    types: list[Any] = [ProblemDocument]
    for route in routes:
        types += [kind for kind in (route.answer, route.body) if kind is not None and kind not in types]
    found, components = msgspec.json.schema_components(
        types, schema_hook=_any_json, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(types, found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TinySphere",
            "version": __version__,
            "description": "Fleet, models, deployments and drift of many small devices.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "a user token, ts_..."},
                "device": {"type": "http", "scheme": "bearer", "description": "a device key, ID.SECRET"},
            },
        },
    }
