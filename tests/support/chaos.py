"""A TCP proxy on loopback that resets, delays, truncates, duplicates and swallows, by a seed."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final

from tinylcm.errors import WireError
from tinylcm.wire import SYNC_BYTES_MAX, decode_request, expand

FATES: Final = ("pass", "reset request", "reset answer", "truncate answer", "delay", "duplicate", "swallow answer")
CHUNK: Final = 16 << 10
IDLE_S: Final = 10.0  # a connection on which nothing moves ends


class ChaosProxy:
    """Forwards connections to a port of this machine; each has a fate of its own.

    Args:
        port: of the server, on loopback.
        seed: of the fates.
        harm: share of the connections that do not just pass.

    Attributes:
        port: where it listens.
        calm: let everything pass from now on.
        fates: how many connections had which.
        answers_cut: answers of the server that did not reach the client whole, though the server had the request.
        requested: what each connection to the server carried, as far as the server was sent it.
        errors: what went wrong in the proxy itself; a test asserts that there is nothing.
    """

    def __init__(self, port: int, *, seed: int, harm: float = 0.6) -> None:
        self._target, self._harm = port, harm
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.calm = False
        self.fates: Counter[str] = Counter()
        self.answers_cut = 0
        self.requested: list[bytes] = []
        self.errors: list[BaseException] = []
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, name="chaos-proxy", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with self._guard:
                harmed = not self.calm and self._random.random() < self._harm
                fate = self._random.choice(FATES[1:]) if harmed else "pass"
                after = self._random.choice((0, 1, 20, 100, 150, 200, 300, 1000, 10_000))
                self.fates[fate] += 1
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(client, fate, after), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, fate: str, after: int) -> None:
        try:
            with client, socket.create_connection(("127.0.0.1", self._target), timeout=IDLE_S) as server:
                client.settimeout(IDLE_S)
                twin = socket.create_connection(("127.0.0.1", self._target)) if fate == "duplicate" else None
                try:
                    self._join(client, server, twin, fate, after)
                finally:
                    if twin is not None:
                        twin.close()
        except OSError:
            pass  # one of the two was killed: that is what this is for
        except BaseException as error:
            self.errors.append(error)

    def _join(
        self, client: socket.socket, server: socket.socket, twin: socket.socket | None, fate: str, after: int
    ) -> None:
        answers = threading.Thread(target=self._answers, args=(client, server, fate, after), daemon=True)
        answers.start()
        drain = threading.Thread(target=_drain, args=(twin,), daemon=True) if twin is not None else None
        if drain is not None:
            drain.start()
        sent, carried = 0, bytearray()
        with suppress(OSError):
            while chunk := client.recv(CHUNK):
                if fate == "delay":
                    time.sleep(0.02 + after / 100_000)
                if fate == "reset request" and sent + len(chunk) > after:
                    server.sendall(chunk[: max(0, after - sent)])
                    _reset(server)
                    _reset(client)
                    break
                server.sendall(chunk)
                sent += len(chunk)
                carried += chunk
                if twin is not None:
                    twin.sendall(chunk)
        with self._guard:
            self.requested += [bytes(carried)] * (1 if twin is None else 2)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)
        if twin is not None:
            with suppress(OSError):
                twin.shutdown(socket.SHUT_WR)
        answers.join(IDLE_S)
        if drain is not None:
            drain.join(IDLE_S)

    def _answers(self, client: socket.socket, server: socket.socket, fate: str, after: int) -> None:
        given = 0
        with suppress(OSError):
            while chunk := server.recv(CHUNK):
                cut = fate in ("reset answer", "truncate answer") and given + len(chunk) > after
                if cut or fate == "swallow answer":
                    with self._guard:
                        self.answers_cut += 1
                    if cut:
                        client.sendall(chunk[: max(0, after - given)])
                    if fate == "reset answer":
                        _reset(client)
                    else:
                        client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(chunk)
                given += len(chunk)
            client.shutdown(socket.SHUT_WR)

    def sent_again(self) -> tuple[int, int]:
        """Whole syncs that the server was sent with a record that an earlier one had carried, and such records."""
        seen: set[tuple[str, str, int]] = set()
        requests = records = 0
        for carried in self.requested:
            for body, headers in _posts(carried):
                try:
                    message = decode_request(
                        expand(body, SYNC_BYTES_MAX) if headers.get("content-encoding") == "gzip" else body,
                        headers.get("content-type", ""),
                    )
                except WireError:
                    continue  # the enrolment, or another request than a sync
                ids = {
                    (stream, str(item["epoch"]), int(item["seq"]))  # type: ignore[index]
                    for stream, items in (("events", message.events), ("details", message.details))
                    for item in items
                }
                records += len(ids & seen)
                requests += bool(ids & seen)
                seen |= ids
        return requests, records

    def close(self) -> None:
        """Stop listening, and let go of every connection."""
        self._stop.set()
        self._thread.join(5)
        self._listener.close()
        for thread in self._threads:
            thread.join(IDLE_S)

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _posts(carried: bytes) -> Iterator[tuple[bytes, dict[str, str]]]:
    """The bodies and headers of the syncs that a connection carried whole."""
    while carried:
        head, _, rest = carried.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        length = int(headers.get("content-length", "0"))
        if first.startswith("POST /api/v1/sync ") and length and len(rest) >= length:
            yield rest[:length], headers
        carried = rest[length:]


def _reset(connection: socket.socket) -> None:
    """End with RST instead of FIN."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()


def _drain(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(CHUNK):
            pass
