"""uvicorn's HTTP with bounds that it does not have: how long and how large what a request says before its body may be.

uvicorn waits for ever for a connection's first request, and for the rest of one that has begun: a few hundred peers
that send a byte a minute hold every connection. Bodies have a bound of their own, where they are read.

The parser is httptools': with h11, which is Python alone, reading and writing HTTP takes longer than all the rest of a
small request.
"""

from __future__ import annotations

import asyncio
import threading
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES_MAX: Final = 64 << 10
JOINED_BYTES_MAX: Final = 64 << 10
_CLOSE: Final = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSE
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _CLOSE


class JoinedWrites:
    """A transport that sends what is written in one turn of the loop together: an answer's head and its body."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        """Take it for the end of this turn, or send it now when much waits."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > JOINED_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._transport.write(data)

    def close(self) -> None:
        """Send what waits, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def protocol_with(header_timeout_s: float, header_bytes_max: int = HEADER_BYTES_MAX) -> type[HttpToolsProtocol]:
    """The protocol, with so many seconds and bytes for a request's line and headers."""

    class BoundedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _is_in_head = False  # a request has begun and its headers are not whole
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
            self._timer = self.loop.call_later(header_timeout_s, self._give_up)

        def data_received(self, data: bytes) -> None:
            was_in_head = self._is_in_head
            super().data_received(data)
            if self._is_in_head:
                self._head_bytes = self._head_bytes + len(data) if was_in_head else 0
                if self._head_bytes > header_bytes_max:
                    self._end(_TOO_LARGE)
                    return
            # Also blank lines between requests end the keep-alive timer: no connection is ever without one.
            if self._timer is None and self.timeout_keep_alive_task is None and self._is_waiting():
                self._timer = self.loop.call_later(header_timeout_s, self._give_up)

        def on_message_begin(self) -> None:
            self._is_in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            self._stop_timer()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _is_waiting(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            # A request was answered and nothing of another came: that is no slow request, only an idle connection.
            self._end(b"" if self.cycle is not None and not self._is_in_head else _TOO_SLOW)

        def _end(self, answer: bytes) -> None:
            if not self.transport.is_closing():
                if answer:
                    self.transport.write(answer)
                self.transport.close()

    return BoundedProtocol


def stopping_server(stopping: threading.Event) -> type[uvicorn.Server]:
    """uvicorn's server that sets an event with the first signal: streams that never end by themselves look at it."""

    class StoppingServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            stopping.set()
            super().handle_exit(sig, frame)

    return StoppingServer
