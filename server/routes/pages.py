"""The dashboard: pages made on the server; `static/app.js` draws the charts from the API."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from .. import auth, drifthub, fleet, people
from ..drifthub import DriftEventView, HistogramView
from ..errors import TinySphereError, UnauthorizedError, problem_of
from .table import SESSION_COOKIE, Call, Server, bounded_body, claimant

FORM_BYTES_MAX: Final = 4096
EVENTS_SHOWN: Final = 20
BAR_AREA: Final = (800, 170, 168)  # width, height, base line, in the drawing's units
TICKS_MAX: Final = 8
_TEMPLATES: Final = Path(__file__).parent.parent / "templates"
_MIB: Final = 1 << 20


def utc(at: float) -> str:
    """A time in words that need no time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def ago(at: float, now: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, now - at)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def offset(seconds: float) -> str:
    """A clock's offset in words."""
    if abs(seconds) < 2:
        return "right to 2 s"
    text = ago(0.0, abs(seconds)).removesuffix(" ago")
    return f"{text} {'fast' if seconds > 0 else 'slow'}; times here are the server's"


def figure(value: float | None) -> str:
    """A number with four digits that count."""
    return "–" if value is None else f"{value:.4g}"


def watched(event: DriftEventView) -> str:
    """What drifted."""
    kinds = {"input": "input", "features": "feature", "prediction": "mix of predictions", "confidence": "confidence"}
    kind = kinds.get(event.monitor, event.monitor)
    return kind if event.signal in (event.monitor, "prediction", "confidence") else f"{kind} {event.signal}"


def explain(event: DriftEventView) -> str:
    """A sentence for people who do not know the detector."""
    meaning = {
        "BinnedKS": "recent samples fall into other bins than training's, farther off than chance allows",
        "Mahalanobis": "the recent mean of the window's features is too many deviations away from training",
        "PSI": "recent values fall into other bins than in training",
        "PageHinkley": "the mean has moved in one direction for longer than chance allows",
        "ADWIN": "the recent mean differs from the mean before",
        "CUSUM": "the mean has left the reference's for longer than chance allows",
        "EWMAChart": "the weighted average has left the reference's for longer than chance allows",
        "FeatureDrift": "level, spread, shape or correlation of the features has left training's",
        "HotellingT2": "the recent mean of the features is too far from training",
        "IncrementalKS": "recent values are distributed differently than in training",
        "JensenShannon": "recent values fall into other bins than in training",
        "Wasserstein1": "recent values are distributed differently than in training",
        "ChiSquare": "recent predictions have another mix than in training",
        "KNNDistance": "recent inputs lie farther from their nearest training examples",
        "MMD": "recent inputs are distributed differently than in training",
        "KSWIN": "the newest values are distributed differently than those just before",
        "Limit": "the value has stayed above its limit",
    }.get(event.detector, "the detector's statistic went over its threshold")
    return f"The monitor “{event.monitor}” watches {event.signal}: {meaning}."


@dataclass(frozen=True, slots=True)
class Bar:
    """One rectangle."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A label under a pair of bars."""

    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A bin in the table of numbers."""

    name: str
    reference: str
    current: str


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram pair as it is drawn."""

    width: int
    height: int
    base: int
    bars: list[Bar]
    ticks: list[Tick]
    rows: list[Row]


def _shares(counts: list[float]) -> list[float]:
    total = math.fsum(counts)
    return [count / total if total > 0 else 0.0 for count in counts]


def draw(histogram: HistogramView | None) -> Bars | None:
    """Bars of both distributions beside each other, a pair a bin."""
    if histogram is None or not histogram.reference or len(histogram.reference) != len(histogram.current):
        return None
    width, height, base = BAR_AREA
    reference, current = _shares(histogram.reference), _shares(histogram.current)
    names = _names(histogram)
    highest = max(*reference, *current, 1e-9)
    slot = width / len(names)
    bars, ticks, rows = [], [], []
    for index, name in enumerate(names):
        for place, kind, share in ((0.08, "reference", reference[index]), (0.5, "current", current[index])):
            tall = share / highest * (base - 8)
            title = f"{name}: {kind} {share:.1%}"
            x, slim = round(slot * (index + place), 2), round(slot * 0.42, 2)
            bars.append(Bar(kind, x, round(base - tall, 2), slim, round(tall, 2), title))
        every = -(-len(names) // TICKS_MAX)
        label = f"{histogram.edges[index]:.2g}…" if histogram.edges else name
        ticks.append(Tick(label if index % every == 0 else ""))
        rows.append(Row(name, f"{reference[index]:.1%}", f"{current[index]:.1%}"))
    return Bars(width, height, base, bars, ticks, rows)


def _names(histogram: HistogramView) -> list[str]:
    count = len(histogram.reference)
    if len(histogram.labels) == count:
        return histogram.labels
    if len(histogram.edges) == count + 1:
        return [f"{low:.3g} to {high:.3g}" for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]
    return [str(index) for index in range(count)]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=select_autoescape(), undefined=StrictUndefined
    )
    environment.filters.update(utc=utc, ago=ago, offset=offset, figure=figure, watched=watched)
    return environment


def _machine(capabilities: dict[str, object]) -> list[tuple[str, str]]:
    facts = []
    for key, name in (("machine", "Machine"), ("cpus", "Cores"), ("ram_bytes", "Memory"), ("tinylcm", "TinyLCM")):
        value = capabilities.get(key)
        if isinstance(value, str | int | float):
            facts.append(
                (name, f"{int(value) // _MIB} MiB" if key == "ram_bytes" and not isinstance(value, str) else str(value))
            )
    return facts


def _safe_next(target: str) -> str:
    """Where to go after the sign-in: only to a page of this server."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/devices"


def _is_own_form(request: Request) -> bool:
    """Whether a form was sent by a page of this server: another site's could sign a browser in as somebody else.

    Browsers say it in Sec-Fetch-Site, older ones in Origin; who is no browser sends neither.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")


class Pages:
    """The handlers of the dashboard's pages."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._templates = _environment()

    def _render(self, name: str, status: int = 200, **values: object) -> Response:
        values.setdefault("person", "")
        html = self._templates.get_template(name).render(**values)
        return Response(html, status, media_type="text/html")

    def problem(self, error: TinySphereError) -> Response:
        """An error as a page."""
        problem = problem_of(error)
        return self._render("error.html", problem.status, title=problem.title, detail=str(error))

    async def _person(self, request: Request) -> str:
        cookie = request.cookies.get(SESSION_COOKIE, "")
        if not cookie:
            raise UnauthorizedError("sign in first")
        now_s = self._server.clock.wall_s()
        principal = await run_in_threadpool(auth.authenticate_session, self._server.db, cookie, now_s)
        auth.require(principal, "read")
        return principal.name or principal.id

    def page(
        self, build: Callable[[Request, str, float], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A page for people who are signed in; others are sent to the sign-in."""

        async def serve(request: Request) -> Response:
            try:
                person = await self._person(request)
                return await build(request, person, self._server.clock.wall_s())
            except UnauthorizedError:
                target = f"/login?{urlencode({'next': request.url.path})}"
                if "hx-request" in request.headers:  # a page that refreshes itself must leave as a whole
                    return Response("", 200, {"HX-Redirect": target})
                return RedirectResponse(target, 303)
            except TinySphereError as error:
                return self.problem(error)

        return serve

    async def home(self, request: Request) -> Response:
        """The first page."""
        return RedirectResponse("/devices", 303)

    async def devices(self, request: Request, person: str, now: float) -> Response:
        """Every device."""
        call = Call(self._server, request, None)
        page = await run_in_threadpool(fleet.list_devices, self._server.db, call.text("cursor"), call.limit(), now)
        query = f"?{request.url.query}" if request.url.query else ""
        return self._render(
            "devices.html",
            person=person,
            devices=page.items,
            next=page.next,
            now=now,
            address=f"/devices{query}",
            origin=f"{request.url.scheme}://{request.url.netloc}",
        )

    async def device(self, request: Request, person: str, now: float) -> Response:
        """One device, live."""
        device_id = str(request.path_params["id"])
        device = await run_in_threadpool(fleet.get_device, self._server.db, device_id, now)
        page = await run_in_threadpool(drifthub.list_events, self._server.db, device_id, None, None, EVENTS_SHOWN)
        newest = next((event for event in page.items if event.histogram is not None), None)
        return self._render(
            "device.html",
            person=person,
            device=device,
            events=page.items,
            newest=newest,
            bars=draw(newest.histogram) if newest is not None else None,
            machine=_machine(device.capabilities),
            now=now,
        )

    async def event(self, request: Request, person: str, now: float) -> Response:
        """One drift event with its evidence."""
        number = Call(self._server, request, None).number_in_path("id")
        event = await run_in_threadpool(drifthub.get_event, self._server.db, number)
        return self._render(
            "event.html", person=person, event=event, explanation=explain(event), bars=draw(event.histogram), now=now
        )

    async def login_form(self, request: Request) -> Response:
        """The sign-in."""
        return self._render("login.html", next=_safe_next(request.query_params.get("next", "")), problem="")

    async def login(self, request: Request) -> Response:
        """Exchange a name and a password, or a token, for a session cookie."""
        raw = b"".join(
            [piece async for piece in bounded_body(request, FORM_BYTES_MAX, self._server.config.body_timeout_s)]
        )
        fields = {key: values[0] for key, values in parse_qs(raw.decode("utf-8", "replace")).items()}
        target, config = _safe_next(fields.get("next", "")), self._server.config
        if not _is_own_form(request):
            return self._render("login.html", 403, next=target, problem="this form was sent by another site's page")
        db, now_s, token = self._server.db, self._server.clock.wall_s(), fields.get("token", "").strip()
        failures, address = self._server.failures, claimant(request)
        ticks = self._server.clock.monotonic_s()
        if (wait_s := failures.wait_s(address, ticks)) > 0.0:
            answer = self._render("login.html", 429, next=target, problem="too many wrong tries; wait a moment")
            answer.headers["Retry-After"] = str(math.ceil(wait_s))
            return answer
        try:
            if token:
                secret = await run_in_threadpool(auth.create_session, db, token, config.session_s, now_s)
            else:
                name, password = fields.get("name", ""), fields.get("password", "")
                secret = await run_in_threadpool(people.sign_in, db, name, password, config.session_s, now_s)
        except UnauthorizedError as error:
            failures.take(address, ticks)
            return self._render("login.html", 401, next=target, problem=str(error))
        except TinySphereError as error:
            return self.problem(error)
        response = RedirectResponse(target, 303)
        response.set_cookie(
            SESSION_COOKIE,
            secret,
            max_age=config.session_s,
            httponly=True,
            samesite="strict",
            secure=config.secure_cookies,
        )
        return response

    async def logout(self, request: Request) -> Response:
        """End the session."""
        cookie = request.cookies.get(SESSION_COOKIE, "")
        if cookie:
            await run_in_threadpool(auth.end_session, self._server.db, cookie)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
        return response


def routes(pages: Pages) -> list[BaseRoute]:
    """The dashboard's routes."""
    return [
        Route("/", pages.home),
        Route("/login", pages.login_form, methods=["GET"]),
        Route("/login", pages.login, methods=["POST"]),
        Route("/logout", pages.logout, methods=["POST"]),
        Route("/devices", pages.page(pages.devices)),
        Route("/devices/{id}", pages.page(pages.device)),
        Route("/events/{id}", pages.page(pages.event)),
    ]
