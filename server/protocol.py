"""uvicorn's HTTP with a bound that it does not have: how long a request may take to say what it wants.

uvicorn waits for ever for a connection's first request, and for the rest of one that has begun: a few hundred peers
that send a byte a minute hold every connection. Bodies have a bound of their own, where they are read.
"""

from __future__ import annotations

import asyncio
import threading
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def protocol_with(header_timeout_s: float) -> type[H11Protocol]:
    """h11's protocol, also where httptools is installed, with this many seconds for a request's line and headers."""

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(header_timeout_s, self._give_up)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._timer is None:  # the next request has begun and is not whole
                self._timer = self.loop.call_later(header_timeout_s, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.write(_TOO_SLOW)
                self.transport.close()

    return TimedProtocol


def stopping_server(stopping: threading.Event) -> type[uvicorn.Server]:
    """uvicorn's server that sets an event with the first signal: streams that never end by themselves look at it."""

    class StoppingServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            stopping.set()
            super().handle_exit(sig, frame)

    return StoppingServer
