"""Several boards at once, each found by its uid and found again: after unplugging, a reset, another name of its port.

A board is wanted by its uid, or by the ports where it may be, or just as whatever board there is. Ports that are free
are asked HELLO until every wanted board has a link; a link that breaks sends its board back to being looked for. What
was asked of a board, its streams and a model on its way, is asked again when it is back.

    with Boards([Wanted(uid="A1B2"), Wanted(ports=("/dev/serial/by-id/*Feather*",))]) as boards:
        for board in boards.boards:
            board.stream(0)
        while True:
            for board, event in boards.poll(1.0):
                ...
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeAlias

from .errors import BridgeError, LinkError
from .link import HELLO_S, Link
from .messages import ENDLESS, Caps, Request, StreamRequest
from .ports import BAUD, BAUDS, Port, expand
from .protocol import Event, Refused, Restarted, Unanswered
from .transfer import Transfer

SCAN_S: Final = 1.0
REST_S: Final = 5.0
"""A port on which nobody answered, or another program is, is left alone for a while."""
STRANGER_S: Final = 30.0
"""A board that nobody wants is left alone for longer: opening its port may have reset it."""
STREAM_TRIES: Final = 20
"""So often is a stream asked for again, when the question or its answer is lost."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which board.

    Attributes:
        uid: as it says itself; empty for any.
        ports: patterns such as `/dev/ttyACM*`, or `socket://HOST:PORT`; empty for all ports of this machine.
        baud: None tries the rates in use.
    """

    uid: str = ""
    ports: tuple[str, ...] = ()
    baud: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The board answers, on this port."""

    caps: Caps
    url: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The board does not answer any more."""

    why: str


@dataclass(frozen=True, slots=True)
class Updated:
    """A model's way is over, or it runs on trial and waits for a judgement: `transfer.state` and `.error` say which."""

    transfer: Transfer


BoardEvent: TypeAlias = "Event | Found | Gone | Updated"


class Board:
    """One wanted board, there or not.

    Attributes:
        wanted: which.
        uid: known from the first time on that it answered.
        link: the session, while it is there.
        caps: the last that it said.
    """

    def __init__(self, wanted: Wanted, now: Callable[[], float]) -> None:
        self.wanted = wanted
        self.uid = wanted.uid
        self.link: Link | None = None
        self.caps: Caps | None = None
        self._now = now
        self._streams: dict[int, int] = {}
        self._asked: dict[int, StreamRequest] = {}
        self._tries = 0
        self._transfer: Transfer | None = None
        self._until_s = 0.0
        self._told = False

    def stream(self, stream: int, credit: int = ENDLESS) -> None:
        """Have a stream on, now and whenever the board comes back; a credit of 0 turns it off."""
        if credit:
            self._streams[stream] = credit
        else:
            self._streams.pop(stream, None)
        self._ask_stream(stream, credit)

    def _ask_stream(self, stream: int, credit: int) -> None:
        if self.link is not None and self.link.opened:
            request = StreamRequest(stream, credit > 0, credit)
            self._asked[stream] = request
            self.link.send(request)

    def send(self, request: Request) -> None:
        """Ask the board; the answer comes as an event.

        Raises:
            LinkError: it is not there.
        """
        if self.link is None:
            raise LinkError(f"board {self.uid or 'wanted'} is not there: is it plugged in?")
        self.link.send(request)

    def update(self, transfer: Transfer, timeout_s: float) -> None:
        """Bring a model onto the board, over as many links as it takes; `Updated` comes when it is over.

        Raises:
            BridgeError: another one is on its way.
        """
        if self._transfer is not None and not self._transfer.ended:
            raise BridgeError(f"a model is on its way to board {self.uid} already: wait for it")
        self._transfer, self._until_s, self._told = transfer, self._now() + timeout_s, False
        if self.link is not None:
            transfer.reconnected(self.link.session)

    def _found(self, link: Link) -> Found:
        self.link, self.caps, self.uid = link, link.caps, link.caps.uid
        self._begin_again()
        if self._transfer is not None:
            self._transfer.reconnected(link.session)
        return Found(link.caps, link.port.url)

    def _begin_again(self) -> None:
        self._tries = 0
        for stream, credit in self._streams.items():
            self._ask_stream(stream, credit)

    def _heard(self, events: list[Event]) -> None:
        for event in events:
            if self._transfer is not None:
                self._transfer.take(event, self._now())
            if isinstance(event, Restarted):
                self.caps = event.caps
                self._begin_again()
            elif isinstance(event, Unanswered) and isinstance(event.request, StreamRequest):
                self._stream_failed(event.request)
            elif isinstance(event, Refused) and isinstance(event.request, StreamRequest):
                self._streams.pop(event.request.stream, None)

    def _stream_failed(self, request: StreamRequest) -> None:
        if self._asked.get(request.stream) is request and self._tries < STREAM_TRIES:
            self._tries += 1
            self._ask_stream(request.stream, request.credit if request.on else 0)

    def _drive(self) -> list[BoardEvent]:
        transfer = self._transfer
        if transfer is None:
            return []
        if self._now() >= self._until_s and not transfer.waits:
            transfer.cancel("its time was up before the board had it all")
        more = self.link.drive(transfer) if self.link is not None else not (transfer.ended or transfer.waits)
        if more:
            self._told = False
            return []
        if transfer.ended:
            self._transfer = None
        told, self._told = self._told, True
        return [] if told and not transfer.ended else [Updated(transfer)]

    def next_timeout(self) -> float | None:
        """When it has something to do even when no bytes come."""
        if self._transfer is None:
            return None
        at_s = self._transfer.next_timeout()
        return self._until_s if at_s is None else min(at_s, self._until_s)


class Boards:
    """The boards of this machine that are wanted.

    Args:
        wanted: which boards; those with a uid are told apart first.
        units: rows come in their stream's unit; else as the board counts.
        now: a clock that never steps back, in seconds.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        *,
        units: bool = True,
        hello_s: float = HELLO_S,
        scan_s: float = SCAN_S,
        rest_s: float = REST_S,
        time_interval_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.boards = [Board(one, now) for one in wanted]
        self.problems: dict[str, str] = {}
        self._units, self._hello_s, self._scan_s, self._rest_s = units, hello_s, scan_s, rest_s
        self._time_interval_s = time_interval_s
        self._now = now
        self._probes: dict[str, Link] = {}
        self._resting: dict[str, float] = {}
        self._scan_due_s = now()

    # looking for boards -------------------------------------------------------------------------------------

    def _missing(self) -> list[Board]:
        return [board for board in self.boards if board.link is None]

    def _scan(self) -> None:
        """Say HELLO on every port where a missing board may be and nobody of ours is."""
        now_s = self._now()
        if now_s < self._scan_due_s:
            return
        self._scan_due_s = now_s + self._scan_s
        used = {board.link.port.url for board in self.boards if board.link is not None} | set(self._probes)
        self._resting = {url: until_s for url, until_s in self._resting.items() if until_s > now_s}
        for board in self._missing():
            for url in expand(board.wanted.ports):
                if url not in used and url not in self._resting:
                    self._probe(url, board.wanted.baud)
                    used.add(url)

    def _probe(self, url: str, baud: int | None) -> None:
        try:
            self._probes[url] = Link(
                Port(url, baud or BAUD),
                bauds=(baud,) if baud else BAUDS,
                hello_s=self._hello_s,
                units=self._units,
                time_interval_s=self._time_interval_s,
                now=self._now,
            )
        except LinkError as error:
            self._rest(url, str(error), self._scan_s)

    def _rest(self, url: str, why: str, for_s: float) -> None:
        self.problems[url] = why
        self._resting[url] = self._now() + for_s

    def _step_probes(self) -> list[tuple[Board, BoardEvent]]:
        found: list[tuple[Board, BoardEvent]] = []
        for url, link in list(self._probes.items()):
            try:
                link.step()
            except BridgeError as error:
                self._end_probe(url, link)
                self._rest(url, str(error), self._rest_s)
                continue
            if not link.opened:
                continue
            board = self._whose(link.caps.uid, url)
            if board is None:
                self._end_probe(url, link)
                self._rest(url, f"board {link.caps.uid} answers, which is not one that is missing", STRANGER_S)
            else:
                del self._probes[url]
                self.problems.pop(url, None)
                found.append((board, board._found(link)))
        return found

    def _end_probe(self, url: str, link: Link) -> None:
        del self._probes[url]
        link.close()

    def _whose(self, uid: str, url: str) -> Board | None:
        """Whom a board that answers belongs to: the one of that uid, else one that takes any."""
        if any(board.link is not None and board.uid == uid for board in self.boards):
            return None
        by_uid = [board for board in self._missing() if board.uid == uid]
        taken = {board.uid for board in self.boards}
        by_port = [
            board for board in self._missing()
            if not board.uid and uid not in taken and url in expand(board.wanted.ports)
        ]  # fmt: skip
        return next(iter(by_uid + by_port), None)

    # being driven -------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[tuple[Board, BoardEvent]]:
        """What happened, at the latest after `timeout_s`."""
        until_s = self._now() + timeout_s
        while True:
            if self._missing():
                self._scan()
            self._wait(until_s)
            events = self._step_probes()
            for board in self.boards:
                events += [(board, event) for event in self._step(board)]
            if events or self._now() >= until_s:
                return events

    def _wait(self, until_s: float) -> None:
        links = [*self._probes.values(), *(board.link for board in self.boards if board.link is not None)]
        due_s = [until_s, *(at for link in links if (at := link.next_timeout()) is not None)]
        due_s += [at for board in self.boards if (at := board.next_timeout()) is not None]
        if self._missing():
            due_s.append(self._scan_due_s)
        wait_s = max(0.0, min(due_s) - self._now())
        select.select(links, [link for link in links if link.wants_write], [], wait_s)

    def _step(self, board: Board) -> list[BoardEvent]:
        events: list[BoardEvent] = []
        if board.link is not None:
            try:
                heard = board.link.step()
                events += heard
                board._heard(heard)
                events += board._drive()
            except BridgeError as error:
                board.link.close()
                board.link = None
                self._scan_due_s = self._now()
                events.append(Gone(str(error)))
        else:
            events += board._drive()
        return events

    def wait_for_all(self, timeout_s: float) -> list[tuple[Board, BoardEvent]]:
        """Poll until every board is there.

        Raises:
            LinkError: one is not; what its ports said is in the message.
        """
        until_s = self._now() + timeout_s
        events: list[tuple[Board, BoardEvent]] = []
        while self._missing():
            if self._now() >= until_s:
                raise LinkError(self.missing_text())
            events += self.poll(min(0.5, max(0.0, until_s - self._now())))
        return events

    def missing_text(self) -> str:
        """Which boards are missing, and what was found where they might be."""
        names = ", ".join(board.uid or " ".join(board.wanted.ports) or "any board" for board in self._missing())
        said = "; ".join(f"{url}: {why}" for url, why in sorted(self.problems.items()))
        return f"not found: {names}; {said or 'there is no port to look at: is a board plugged in?'}"

    def close(self) -> None:
        """Give all ports up."""
        for link in [*self._probes.values(), *(board.link for board in self.boards if board.link is not None)]:
            link.close()
        self._probes.clear()
        for board in self.boards:
            board.link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
