"""A wire that loses, damages, doubles and invents bytes: between two ends in virtual time, or between two ptys."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import socket
import threading
import tty
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from firmware_bridge.protocol import Event, Protocol
from firmware_bridge.simboard import SimulatedBoard

STEP_S = 0.02


@dataclass
class Faults:
    """What happens to a byte, each with its probability."""

    seed: int
    flip: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    insert: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.done = 0

    @classmethod
    def each(cls, rate: float, seed: int) -> Faults:
        return cls(seed, rate, rate, rate, rate)

    def pass_on(self, data: bytes) -> bytes:
        out = bytearray()
        draw = self.random.random
        for byte in data:
            if draw() < self.drop:
                self.done += 1
                continue
            if draw() < self.flip:
                self.done += 1
                byte ^= 1 << self.random.randrange(8)
            out.append(byte)
            if draw() < self.duplicate:
                self.done += 1
                out.append(byte)
            if draw() < self.insert:
                self.done += 1
                out.append(self.random.randrange(256))
        return bytes(out)


CLEAN = Faults(0)


class Wire:
    """A host's protocol and a simulated board on a wire, in a time that only moves when it is told to."""

    def __init__(self, host: Protocol, board: SimulatedBoard, faults: Faults = CLEAN, *, pieces_seed: int = 0) -> None:
        self.host, self.board, self.faults = host, board, faults
        self.now_s = 0.0
        self.events: list[Event] = []
        self.cut = False
        self._pieces = random.Random(pieces_seed)
        self._to_board = b""

    def write(self, data: bytes) -> None:
        self._to_board += data

    def step(self) -> list[Event]:
        """Bytes go over, in pieces of any size, and time passes to the next thing to do."""
        found: list[Event] = []
        self._to_board += self.host.outgoing()
        to_board, self._to_board = self._to_board, b""
        if not self.cut:
            self.board.receive(self.faults.pass_on(to_board), self.now_s)
        self.board.tick(self.now_s)
        to_host = self.board.outgoing()
        if not self.cut:
            to_host = self.faults.pass_on(to_host)
            while to_host:
                size = self._pieces.randint(1, 700)
                found += self.host.receive(to_host[:size], self.now_s)
                to_host = to_host[size:]
        found += self.host.tick(self.now_s)
        due_s = [at for at in (self.host.next_timeout(), self.board.next_timeout()) if at is not None]
        self.now_s = max(self.now_s + 0.001, min([self.now_s + STEP_S, *due_s]))
        self.events += found
        return found

    def until(self, done: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        end_s = self.now_s + timeout_s
        while not done() and self.now_s < end_s:
            self.step()
        return done()

    def run(self, seconds: float) -> list[Event]:
        start = len(self.events)
        self.until(lambda: False, seconds)
        return self.events[start:]

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


class FaultyPty:
    """A pty for the host whose bytes go to another port with faults, and back: `with FaultyPty(path, ...) as proxy`."""

    def __init__(self, other: str, there: Faults = CLEAN, back: Faults = CLEAN) -> None:
        self.there, self.back = there, back
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._other = self._open(other)
        for fd in (self._master, self._other):
            os.set_blocking(fd, False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @staticmethod
    def _open(other: str) -> int:
        if not other.startswith("socket://"):
            fd = os.open(other, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(fd)
            return fd
        host, port = other.removeprefix("socket://").split(":")
        connection = socket.create_connection((host, int(port)), 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection.detach()

    def _run(self) -> None:
        routes = {self._master: (self._other, self.there), self._other: (self._master, self.back)}
        waiting = {self._master: bytearray(), self._other: bytearray()}
        while not self._stop.is_set():
            writers = [fd for fd, data in waiting.items() if data]
            with contextlib.suppress(OSError):
                readable, writable, _ = select.select(list(routes), writers, [], 0.05)
                for fd in readable:
                    to, faults = routes[fd]
                    waiting[to] += faults.pass_on(os.read(fd, 65536))
                for fd in writable:
                    del waiting[fd][: os.write(fd, waiting[fd])]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)
        for fd in (self._master, self._slave, self._other):
            os.close(fd)
