"""The other end of `benchmarks.ingest`: a process that only sends prepared bytes and reads answers, by epoll.

    python -m benchmarks.ingest_load PLAN.msgpack

The plan: {"host", "port", "ca" or None, "rate" requests a second or 0 for as fast as answers come, "connections":
[[request, ...], ...], "warm": requests of each connection that are not measured}. Prints one JSON document.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

TIMEOUT_S = 240.0


class Peer:
    """One connection and the requests that it still has to send."""

    def __init__(self, sock: socket.socket, requests: list[bytes], warm: int) -> None:
        self.sock, self.requests, self.warm = sock, requests, warm
        self.sent = self.answered = self.failed = 0
        self.due_s = 0.0
        self.problem = b""
        self._answer = b""

    def send(self, due_s: float) -> None:
        """Send the next one; its time counts from when it was due."""
        self.due_s = due_s
        self.sock.setblocking(True)
        self.sock.sendall(self.requests[self.sent])
        self.sock.setblocking(False)
        self.sent += 1

    def receive(self) -> bool:
        """Read what has come; whether the answer is whole."""
        while True:
            try:
                part = self.sock.recv(1 << 16)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not part:
                raise ConnectionError(f"the server closed after {self._answer[:300]!r}")
            self._answer += part
            if not isinstance(self.sock, ssl.SSLSocket) or not self.sock.pending():
                break
        head, mark, body = self._answer.partition(b"\r\n\r\n")
        if not mark:
            return False
        low = head.lower()
        start = low.index(b"content-length:") + 15
        end = low.find(b"\r\n", start)
        if len(body) < int(low[start : end if end > 0 else len(low)]):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            self.failed += 1
            self.problem = self._answer[:600]
        self._answer = b""
        self.answered += 1
        return True

    @property
    def is_measured(self) -> bool:
        """Whether what was answered last counts."""
        return self.answered > self.warm


def connect(plan: dict[str, Any]) -> socket.socket:
    """A connection, with TLS if the plan names an authority."""
    sock = socket.create_connection((plan["host"], plan["port"]), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if plan["ca"]:
        context = ssl.create_default_context(cafile=plan["ca"])
        return context.wrap_socket(sock, server_hostname="localhost")
    return sock


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Send everything; what it took."""
    peers = {}
    poll = select.epoll()
    for requests in plan["connections"]:
        peer = Peer(connect(plan), requests, plan["warm"])
        peers[peer.sock.fileno()] = peer
        poll.register(peer.sock.fileno(), select.EPOLLIN)
    rate, total = plan["rate"], sum(len(peer.requests) for peer in peers.values())
    start_s = time.perf_counter()
    idle = list(peers.values())
    scheduled = answered = 0
    latencies: list[float] = []
    measured_from_s = measured_to_s = 0.0
    while answered < total:
        now_s = time.perf_counter()
        if now_s - start_s > TIMEOUT_S:
            raise TimeoutError(f"{answered} of {total} answers within {TIMEOUT_S:g} s")
        while idle and (not rate or start_s + scheduled / rate <= now_s):
            peer = idle.pop(0)
            if peer.sent == len(peer.requests):
                continue
            peer.send(start_s + scheduled / rate if rate else time.perf_counter())
            scheduled += 1
        wait_s = 1.0 if not rate or not idle else max(0.0, start_s + scheduled / rate - time.perf_counter())
        for number, _ in poll.poll(min(wait_s, 1.0)):
            peer = peers[number]
            if not peer.receive():
                continue
            done_s = time.perf_counter()
            answered += 1
            if peer.is_measured:
                measured_from_s = measured_from_s or peer.due_s
                measured_to_s = done_s
                latencies.append(done_s - peer.due_s)
            if rate:
                idle.append(peer)
            elif peer.sent < len(peer.requests):
                peer.send(done_s)
    for peer in peers.values():
        peer.sock.close()
    for problem in [peer.problem for peer in peers.values() if peer.problem][:1]:
        print(problem, file=sys.stderr)
    latencies.sort()
    return {
        "requests": len(latencies),
        "seconds": measured_to_s - measured_from_s,
        "failed": sum(peer.failed for peer in peers.values()),
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[int(len(latencies) * 0.99)],
        "own_cpu_s": time.process_time(),
    }


if __name__ == "__main__":
    print(json.dumps(run(msgpack.unpackb(Path(sys.argv[1]).read_bytes()))))
