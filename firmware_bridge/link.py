"""One open port and the session on it: bytes of the port go through `protocol.py`, and what it says goes out.

A link says HELLO until the board answers, at one rate or at all that are in use; boot banners, noise and a board that
only starts now cost time, nothing else. It is driven by whoever has it, in one thread: `poll` and `ask` wait by
themselves, `boards.py` waits for many at once.

    with open_link("/dev/ttyACM0") as link:
        print(link.caps.uid)
        link.ask(StreamRequest(stream=0, on=True))
        for event in link.poll(1.0):
            ...
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from .errors import VERSION, LinkError, NoAnswerError
from .messages import Answer, Caps, HelloRequest, Request
from .ports import BAUD, BAUDS, Port
from .protocol import RETRY_S, Answered, Event, Protocol, Refused, Unanswered
from .transfer import Transfer

HELLO_S: Final = 8.0
"""A board that was reset by opening its port may stay in its boot loader for 2 s and more."""
FLUSH: Final = bytes(4)
"""Ends whatever stands half on the line."""
PROBE_S: Final = 0.3
PROBE_BYTES: Final = 500
"""An answer to HELLO has a few hundred bytes: a rate is given the time that they take, and `PROBE_S`."""
STALL_S: Final = 5.0
SILENT_MAX: Final = 3
"""HELLOs without an answer, each sent four times, and nothing else heard: 10 s in all."""
DEAF_MAX: Final = 8
"""The same while frames of the board come in: on a line that damages 0.4 % of all bytes, three happen by chance."""
KEPT_MAX: Final = 100_000
ASK_S: Final = sum(RETRY_S) + 30.0
"""Other requests may be in front of one: on the slowest line the whole queue is through in this time."""


class Link:
    """One session with one board.

    Args:
        port: open; the link owns it from now on.
        bauds: rates to try; empty: as the port is.
        hello_s: how long the board may take to answer the first time.
        units: rows come in the stream's unit; else as the board counts.
        time_interval_s: how often the board's clock is asked; 0 for never.
        now: a clock that never steps back, in seconds.
        session: differs from the last session's; drawn when not given.
    """

    def __init__(
        self,
        port: Port,
        *,
        bauds: Sequence[int] = (),
        hello_s: float = HELLO_S,
        units: bool = True,
        time_interval_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
        session: int | None = None,
    ) -> None:
        self.port = port
        self._bauds = tuple(bauds) if port.has_baud else ()
        self._at = 0
        self._units = units
        self._time_interval_s = time_interval_s
        self._now = now
        self._session = random.getrandbits(32) if session is None else session
        self._out = bytearray()
        self._moved_s = now()
        self._hello_until_s = now() + hello_s
        self._probe_until_s = 0.0
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._heard = 0
        self._frames = self._silent = self._deaf = 0
        self.protocol = self._begin()

    # opening ------------------------------------------------------------------------------------------------

    def _begin(self) -> Protocol:
        """Say HELLO at the next rate."""
        if self._bauds and self.port.baud != self._bauds[self._at]:
            self.port.baud = self._bauds[self._at]
        byte_s = self.port.byte_s
        protocol = Protocol(self._session, byte_s=byte_s, units=self._units, time_interval_s=self._time_interval_s)
        now_s = self._now()
        self._out = bytearray(FLUSH + protocol.send(HelloRequest(self._session), now_s))
        if len(self._bauds) > 1:
            self._probe_until_s = now_s + PROBE_S + PROBE_BYTES * 10 / self._bauds[self._at]
        else:
            self._probe_until_s = float("inf")
        return protocol

    @property
    def opened(self) -> bool:
        """The board has said who it is."""
        return self.protocol.caps is not None

    @property
    def caps(self) -> Caps:
        """Who the board is and what it can.

        Raises:
            LinkError: it has not said so yet.
        """
        if self.protocol.caps is None:
            raise LinkError(f"the board on {self.port.url} has not answered yet: wait for it")
        return self.protocol.caps

    @property
    def session(self) -> int:
        """The session's number."""
        return self._session

    # being driven -------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For `select`."""
        return self.port.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether to wait until the port takes bytes."""
        return bool(self._out)

    def next_timeout(self) -> float | None:
        """When `step` has something to do even when no bytes come."""
        times = [self.protocol.next_timeout(), self._moved_s + STALL_S if self._out else None]
        if not self.opened:
            times += [self._hello_until_s, self._probe_until_s]
        return min((at for at in times if at is not None), default=None)

    def step(self) -> list[Event]:
        """Read and write what is possible now, and do what time asks for.

        Raises:
            LinkError: the port broke off, takes no bytes, or the board stopped answering.
            NoAnswerError: no board answers here.
        """
        events: list[Event] = []
        data = self.port.read()
        now_s = self._now()
        if data:
            self._heard += len(data)
            events += self.protocol.receive(data, now_s)
        events += self.protocol.tick(now_s)
        self._write(now_s)
        if self.opened:
            self._listen(events)
        else:
            self._greet(events, now_s)
        return events

    def _listen(self, events: list[Event]) -> None:
        """A board that does not say who it is, several times over, is gone, or does not hear."""
        whole, self._frames = self.protocol.frames != self._frames, self.protocol.frames
        if any(isinstance(event, (Answered, Refused)) for event in events):
            self._silent = self._deaf = 0
        unanswered = sum(isinstance(event, Unanswered) and isinstance(event.request, HelloRequest) for event in events)
        self._deaf += unanswered
        self._silent = 0 if whole else self._silent + unanswered
        if self._silent >= SILENT_MAX:
            raise LinkError(f"board {self.caps.uid} on {self.port.url} stopped answering: is it powered?")
        if self._deaf >= DEAF_MAX:
            raise LinkError(
                f"board {self.caps.uid} on {self.port.url} sends, but does not hear: check its receive line"
            )

    def _write(self, now_s: float) -> None:
        self._out += self.protocol.outgoing()
        if not self._out:
            self._moved_s = now_s
            return
        written = self.port.write(self._out)
        if written:
            self._moved_s = now_s
            del self._out[:written]
        elif now_s - self._moved_s > STALL_S:
            raise LinkError(f"{self.port.url} takes no bytes: nobody reads at its other end")

    def _greet(self, events: list[Event], now_s: float) -> None:
        for event in events:
            if isinstance(event, Refused) and event.error.code == VERSION:
                raise LinkError(f"the board on {self.port.url} speaks another protocol version: {event.error}")
        if now_s >= self._hello_until_s:
            rates = f" at {', '.join(map(str, self._bauds))} baud" if self._bauds else ""
            heard = f"{self._heard} bytes came, but none of them an answer" if self._heard else "not a byte came"
            raise NoAnswerError(f"no board answers on {self.port.url}{rates}: {heard}; is its firmware running?")
        if now_s >= self._probe_until_s:
            self._at = (self._at + 1) % len(self._bauds)
            self.protocol = self._begin()
        elif self.protocol.idle:  # HELLO was given up or answered with nonsense: once more
            self._out += FLUSH + self.protocol.send(HelloRequest(self._session), now_s)

    def send(self, request: Request) -> None:
        """Ask the board; the answer comes as an event.

        Raises:
            BridgeError: too many requests wait, or the port broke off.
        """
        now_s = self._now()
        self._out += self.protocol.send(request, now_s)
        self._write(now_s)

    # waiting by itself --------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Event]:
        """What happened, at the latest after `timeout_s`; what `ask` passed over comes first.

        Raises:
            LinkError, NoAnswerError: see `step`.
        """
        if self._kept:
            kept = list(self._kept)
            self._kept.clear()
            return kept
        return self._poll(timeout_s)

    def _poll(self, timeout_s: float) -> list[Event]:
        until_s = self._now() + timeout_s
        while True:
            now_s = self._now()
            due_s = self.next_timeout()
            wait_s = min(until_s, due_s if due_s is not None else until_s) - now_s
            self.port.wait(wait_s, writing=bool(self._out))
            events = self.step()
            if events or self._now() >= until_s:
                return events

    def open(self) -> Caps:
        """Wait until the board has answered.

        Raises:
            LinkError, NoAnswerError: it does not.
        """
        while not self.opened:  # `step` ends it after `hello_s`
            self._kept.extend(self._poll(1.0))
        return self.caps

    def ask(self, request: Request, timeout_s: float = ASK_S) -> Answer:
        """Ask the board and wait for its answer; other events are kept for `poll`.

        Raises:
            RefusedError: the board refused.
            NoAnswerError: nobody answered, or the board restarted before it did.
            LinkError: the port broke off.
        """
        self.send(request)
        until_s = self._now() + timeout_s
        while self._now() < until_s:
            found: Answered | None = None
            failure: Exception | None = None
            for event in self._poll(until_s - self._now()):
                if isinstance(event, (Answered, Refused, Unanswered)) and _is(event.request, request):
                    found = event if isinstance(event, Answered) else None
                    failure = None if isinstance(event, Answered) else event.error
                else:
                    self._kept.append(event)
            if failure is not None:
                raise failure
            if found is not None:
                return found.answer
        raise NoAnswerError(f"no answer within {timeout_s:g} s: too much waits in front of the request")

    def update(
        self, transfer: Transfer, *, timeout_s: float, progress: Callable[[float], None] | None = None
    ) -> Transfer:
        """Bring a model onto the board; returns when it is over, or on trial and waits for the caller's judgement.

        Raises:
            UpdateError: it failed; what ran before runs on.
            LinkError: the port broke off; go on with the same transfer on another link.
        """
        until_s = self._now() + timeout_s
        while self.drive(transfer):
            if self._now() >= until_s:
                transfer.cancel(f"it took longer than {timeout_s:g} s")
                break
            wake_s = transfer.next_timeout()
            wait_s = 0.2 if wake_s is None else min(0.2, max(0.0, wake_s - self._now()))
            for event in self._poll(wait_s):
                transfer.take(event, self._now())
                if not isinstance(event, (Answered, Refused, Unanswered)):
                    self._kept.append(event)
            if progress is not None:
                progress(transfer.acknowledged / transfer.size)
        if transfer.error is not None:
            raise transfer.error
        return transfer

    def drive(self, transfer: Transfer) -> bool:
        """Send what a transfer wants to ask now; whether it has more to do by itself."""
        for request in transfer.requests(self._now()):
            self.send(request)
        return not transfer.ended and not transfer.waits

    def close(self) -> None:
        """Give the port up."""
        self.port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is(found: Request, asked: Request) -> bool:
    """TIME is sent with the time of sending, so it is another object than what was asked."""
    return found is asked or (type(found) is type(asked) and found.TYPE == 0x02)


def open_link(
    url: str,
    *,
    baud: int | None = None,
    hello_s: float = HELLO_S,
    units: bool = True,
    time_interval_s: float = 10.0,
) -> Link:
    """Open a port and wait for its board.

    Args:
        url: a path, or `socket://HOST:PORT`.
        baud: None tries the rates in use.

    Raises:
        LinkError: the port cannot be opened.
        NoAnswerError: no board answers.
    """
    link = Link(
        Port(url, baud or BAUD),
        bauds=(baud,) if baud else BAUDS,
        hello_s=hello_s,
        units=units,
        time_interval_s=time_interval_s,
    )
    try:
        link.open()
    except BaseException:
        link.close()
        raise
    return link
