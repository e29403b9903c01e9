"""Connections that do not say what they want are given up; the others are served meanwhile and keep theirs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
import uvicorn
from tinysphere.app import create_app
from tinysphere.config import ServerConfig
from tinysphere.protocol import protocol_with

TIMEOUT_S = 0.6


@contextmanager
def serving(app: object) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="critical",
            http=protocol_with(TIMEOUT_S),
            timeout_keep_alive=30,
            lifespan="on",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("server")
    with serving(create_app(ServerConfig(folder))) as found:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", found), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield found


def read_all(peer: socket.socket) -> bytes:
    peer.settimeout(20)
    parts = []
    while part := peer.recv(4096):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_request_that_never_ends_its_headers_is_given_up(port: int, begun: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(begun)
        assert read_all(peer).startswith(b"HTTP/1.1 408")


def test_a_byte_now_and_then_buys_no_time(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(20)
        start_s = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(1000):
                peer.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - start_s < 20


def test_a_second_request_that_stops_half_way_is_given_up_too(port: int) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(whole)
        peer.settimeout(20)
        first = peer.recv(4096)
        assert first.startswith(b"HTTP/1.1 200")
        peer.sendall(whole[:20])
        assert b"HTTP/1.1 408" in read_all(peer)


def test_a_head_without_an_end_is_given_up_by_its_size(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(20)
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with contextlib.suppress(OSError):
            for _ in range(64):
                peer.sendall(b"x" * 4096)
                time.sleep(0.002)
        with contextlib.suppress(ConnectionError):
            assert b" 431 " in read_all(peer)


def test_blank_lines_after_a_request_keep_no_connection_open(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(20)
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.recv(4096).startswith(b"HTTP/1.1 200")
        peer.sendall(b"\r\n")
        start_s = time.monotonic()
        assert b"408" not in read_all(peer)
        assert time.monotonic() - start_s < 15


def test_others_are_served_meanwhile_and_idle_connections_are_kept(port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1, retries=False)
    try:
        for peer in slow:
            peer.sendall(b"GET / HT")
        assert [pool.request("GET", "/healthz").status for _ in range(20)] == [200] * 20
        time.sleep(2 * TIMEOUT_S)  # idle between two requests is no slow header
        assert pool.request("GET", "/healthz").status == 200
        assert pool.num_connections == 1
    finally:
        pool.close()
        for peer in slow:
            peer.close()
