"""Clients that mean ill: 200 connections that send their headers a byte at a time, and bodies of a gibibyte.

The others' p99 beside the attack and without it goes into the report; what is asserted does not depend on the machine:
every other request is answered well, the memory stays, and who sends too much is told so.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
from fleet import Sphere, sphere

SLOW: Final = 200
BODY_BYTES: Final = 1 << 30
ROUNDS: Final = 6 if os.environ.get("TINYMLOPS_TORTURE") else 3
ASKED: Final = 80  # requests of the others in each half of a round
UPLOAD: Final = "/api/v1/models/activity/versions"
PACE_S: Final = 0.03  # below what the server lets one person ask


def ask(server: Sphere) -> list[float]:
    """What others see: seconds of each request, from the moment it was sent."""
    connection, took = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20), []
    for _ in range(ASKED):
        begin = time.perf_counter()
        connection.request("GET", "/api/v1/models", headers={"Authorization": f"Bearer {server.token}"})
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - begin)
        assert answer.status == 200
        time.sleep(PACE_S)
    connection.close()
    return took


@contextlib.contextmanager
def slow_headers(server: Sphere) -> Iterator[Callable[[], int]]:
    """Keep `SLOW` connections open, each sending a header byte by byte; how many there are at the moment."""
    over, sockets = threading.Event(), []

    def drip() -> None:
        opened: list[socket.socket] = []
        while not over.wait(0.1):
            while len(opened) < SLOW and not over.is_set():
                each = socket.create_connection(("127.0.0.1", server.port), timeout=10)
                each.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                opened.append(each)
            for each in list(opened):
                try:
                    each.sendall(b"a")
                except OSError:  # the server had enough of it: come again
                    each.close()
                    opened.remove(each)
            sockets[:] = opened
        for each in opened:
            each.close()

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while len(sockets) < SLOW and time.monotonic() < deadline:
            time.sleep(0.05)
        yield lambda: len(sockets)
    finally:
        over.set()
        thread.join(60)


def send_too_much(server: Sphere, path: str, declared: bool) -> int:
    """Send a gibibyte, or as much as is taken; the status."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        length = f"Content-Length: {BODY_BYTES}" if declared else "Transfer-Encoding: chunked"
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
            f"Content-Type: application/octet-stream\r\n{length}\r\n\r\n".encode()
        )
        piece = bytes(1 << 16)
        chunk = piece if declared else b"10000\r\n" + piece + b"\r\n"
        with contextlib.suppress(OSError):  # the server answers and closes before the end
            for _ in range(BODY_BYTES >> 16):
                connection.sendall(chunk)
        answer = b""
        with contextlib.suppress(OSError):
            while b"\r\n" not in answer and (got := connection.recv(4096)):
                answer += got
    return int(answer.split()[1]) if answer else 0


def p99_ms(took: list[float]) -> float:
    return sorted(took)[int(0.99 * (len(took) - 1))] * 1e3


def test_slow_headers_and_endless_bodies_do_not_hurt_the_others(tmp_path: Path, report: Callable[..., None]) -> None:
    quiet: list[float] = []
    beside: list[float] = []
    grown, statuses = 0, set[int]()
    with sphere(tmp_path) as server:
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        ask(server)  # warm
        before = process.memory_info().rss
        for _ in range(ROUNDS):
            quiet += ask(server)
            with slow_headers(server) as held:
                assert held() > SLOW // 2
                sender = threading.Thread(
                    target=lambda: statuses.update(
                        send_too_much(server, "/api/v1/models/activity/versions", declared)
                        for declared in (True, False)
                    )
                )
                sender.start()
                beside += ask(server)
                sender.join(120)
                assert not sender.is_alive()
                grown = max(grown, process.memory_info().rss - before)
        ask(server)
    assert statuses <= {413, 0}  # 0: the connection was reset before the answer was read
    assert 413 in statuses
    assert grown < 50 << 20
    report(
        f"{SLOW} connections with slow headers and bodies of 1 GiB",
        requests_of_others=len(beside), failed=0, p99_ms_without=round(p99_ms(quiet), 1),
        p99_ms_beside=round(p99_ms(beside), 1), p99_ratio=round(p99_ms(beside) / p99_ms(quiet), 2),
        memory_grown_kB=grown >> 10,
    )  # fmt: skip
