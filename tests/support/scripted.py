"""A loopback HTTP server that answers what a test tells it to: the peer that lies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tinylcm.wire import SyncRequest, decode_request, expand


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def message(self) -> SyncRequest:
        """The sync that it carries."""
        body = expand(self.body, 1 << 22) if self.headers.get("Content-Encoding") == "gzip" else self.body
        return decode_request(body, self.headers["Content-Type"])


@dataclass
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # close the connection after this many bytes of the body


@contextmanager
def scripted_server(answer: Callable[[Request], Reply]) -> Iterator[tuple[str, list[Request]]]:
    """Serve on a free loopback port; yields the address and the requests seen so far."""
    seen: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
            seen.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if reply.cut_after is None:
                self.wfile.write(reply.body)
            else:
                self.wfile.write(reply.body[: reply.cut_after])
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
