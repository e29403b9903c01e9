"""The device's HTTP against peers that are absent, slow to stop or lying."""

from __future__ import annotations

import base64
import hashlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from scripted import Reply, scripted_server
from tinylcm.config import ServerConfig
from tinylcm.errors import ConfigError, ServerError
from tinylcm.http import ANSWER_BYTES_MAX, HttpClient, check_url, fetch_ca, is_loopback, proxy_for


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.8.8.8", True), ("::1", True), ("10.0.0.1", False), ("localhost.example", False)],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_plain_http_to_another_machine_is_refused_unless_named() -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        HttpClient("http://192.0.2.1:8080")
    check_url("http://192.0.2.1:8080", insecure=True)
    check_url("https://192.0.2.1:8443", insecure=False)
    for text in ("ftp://host", "host:80", "http://"):
        with pytest.raises(ConfigError, match="no http"):
            check_url(text, insecure=True)


def test_a_ca_file_that_is_none_is_named(tmp_path) -> None:
    path = tmp_path / "ca.pem"
    for content in (None, b"not a certificate"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"ca.pem cannot be used"):
            HttpClient("https://127.0.0.1:1", ca_file=str(path))


def test_a_request_carries_the_key_and_follows_no_redirect() -> None:
    elsewhere = Reply(302, b"", {"Location": "http://192.0.2.1/steal"})
    with scripted_server(lambda request: elsewhere) as (url, seen):
        client = HttpClient(url, key="d1.secret")
        assert client.request("POST", "/api/v1/sync", b"{}").status == 302
        client.close()
    assert seen[0].headers["Authorization"] == "Bearer d1.secret" and len(seen) == 1


def test_an_absent_server_is_a_server_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = HttpClient(f"http://127.0.0.1:{unused.getsockname()[1]}", ServerConfig(timeout_s=1))
        with pytest.raises(ServerError, match="cannot be reached"):
            client.request("GET", "/")


def test_an_endless_answer_is_cut_off() -> None:
    with scripted_server(lambda request: Reply(body=b"x" * (ANSWER_BYTES_MAX + 2))) as (url, _):
        client = HttpClient(url)
        with pytest.raises(ServerError, match="larger than"):
            client.request("GET", "/")
        client.close()


def test_an_answer_that_is_cut_off_is_a_server_error() -> None:
    with scripted_server(lambda request: Reply(body=b"x" * 100, cut_after=40)) as (url, _):
        client = HttpClient(url)
        with pytest.raises(ServerError, match="cut off after 40 of 100 bytes"):
            client.request("GET", "/")
        client.close()


def test_a_download_that_breaks_is_a_server_error() -> None:
    with scripted_server(lambda request: Reply(body=b"x" * 1000, cut_after=10)) as (url, seen):
        client = HttpClient(url, ServerConfig(timeout_s=2))
        with pytest.raises(ServerError), client.download("/p", 5) as (status, _, pieces):
            assert status == 200
            list(pieces)
        client.close()
    assert seen[0].headers["Range"] == "bytes=5-"


def test_only_the_pinned_authority_is_believed() -> None:
    import ssl

    der = b"\x30\x03\x02\x01\x01"
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    pin = "sha256:" + hashlib.sha256(der).hexdigest()
    with scripted_server(lambda request: Reply(body=pem)) as (url, _):
        assert fetch_ca(url, pin) == pem
        with pytest.raises(ServerError, match="another server"):
            fetch_ca(url, "sha256:" + "0" * 64)
    with (
        scripted_server(lambda request: Reply(404, b"nothing")) as (url, _),
        pytest.raises(ServerError, match="did not answer with a certificate"),
    ):
        fetch_ca(url, pin)


# Proxies


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that tunnels (CONNECT) and passes plain requests on; remembers what it was asked for."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, login: str = "") -> None:
        self.asked: list[str] = []
        self.login = login
        super().__init__(("127.0.0.1", 0), _ProxyHandler)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _ProxyHandler(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        head = [self.rfile.readline().decode()]
        while head[-1] not in ("\r\n", ""):
            head.append(self.rfile.readline().decode())
        self.server.asked.append(head[0].strip())
        wanted = base64.b64encode(self.server.login.encode()).decode()
        if self.server.login and not any(f"Basic {wanted}" in line for line in head):
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        method, target, _ = head[0].split(" ", 2)
        address = target if method == "CONNECT" else target.split("/")[2]
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            if method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                peer.sendall("".join([head[0].replace(f"http://{address}", ""), *head[1:]]).encode())
            other = threading.Thread(target=self._pump, args=(self.connection, peer), daemon=True)
            other.start()
            self._pump(peer, self.connection)
            other.join(5)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate of it and a client's."""
    folder = tmp_path_factory.mktemp("pki")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        "req", "-x509", *new, "-days", "2", "-subj", "/CN=ca", "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem"
    )
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *new, "-subj", f"/CN={name}", "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr")
        openssl(
            "x509", "-req", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", f"{folder}/san", "-out", f"{folder}/{name}.pem",
        )  # fmt: skip
    return folder


@contextmanager
def tls_server(pki: Path, *, wants_certificate: bool = False) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that this side refused

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    if wants_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pki / "ca.pem")
    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with running(server):
        yield f"https://127.0.0.1:{server.server_address[1]}"


def get(url: str, config: ServerConfig) -> bytes:
    client = HttpClient(url, config)
    try:
        return client.request("GET", "/").body
    finally:
        client.close()


def test_https_goes_through_a_proxys_tunnel_and_is_verified(pki: Path) -> None:
    proxy = Proxy()
    with running(proxy), tls_server(pki) as url:
        assert get(url, ServerConfig(ca_file=f"{pki}/ca.pem", proxy=f"http://{proxy.url}")) == b"hello"
        assert [line.split()[0] for line in proxy.asked] == ["CONNECT"]
        with pytest.raises(ServerError, match="certificate verify failed"):
            get(url, ServerConfig(proxy=f"http://{proxy.url}"))  # of an authority that nobody knows
        pem = (pki / "ca.pem").read_text()
        with pytest.raises(ServerError, match="did not answer with a certificate"):
            fetch_ca(url, "sha256:" + "0" * 64, ServerConfig(proxy=f"http://{proxy.url}"))
        assert len(proxy.asked) == 3 and "hello" not in pem


def test_plain_http_and_a_login_go_through_a_proxy_too() -> None:
    proxy = Proxy(login="someone:pass word")
    with running(proxy), scripted_server(lambda request: Reply(body=b"hello")) as (url, seen):
        assert get(url, ServerConfig(proxy=f"http://someone:pass%20word@{proxy.url}")) == b"hello"
        assert len(seen) == 1 and proxy.asked[0].startswith(f"GET {url}/")
        client = HttpClient(url, ServerConfig(proxy=f"http://{proxy.url}"))
        assert client.request("GET", "/").status == 407
        client.close()


def test_a_proxy_that_is_not_there_or_refuses_is_named(pki: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        config = ServerConfig(timeout_s=2, proxy=f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ServerError, match=r"cannot be reached: the proxy: .*refused"):
            get("https://127.0.0.1:1", config)
    proxy = Proxy(login="a:b")
    with running(proxy), tls_server(pki) as url, pytest.raises(ServerError, match=r"the proxy: .*407"):
        get(url, ServerConfig(proxy=f"http://{proxy.url}"))
    with pytest.raises(ConfigError, match="no http"):
        HttpClient("https://127.0.0.1:1", ServerConfig(proxy="socks5://127.0.0.1:1"))


def test_the_environment_names_the_proxy_only_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert proxy_for("https://server.example", "") == ""
    assert proxy_for("https://server.example", "environment") == "http://192.0.2.1:3128"
    assert proxy_for("https://inside.example", "environment") == ""
    assert proxy_for("https://127.0.0.1:8443", "environment") == ""
    assert proxy_for("https://inside.example", "http://192.0.2.7:1") == "http://192.0.2.7:1"


# Certificates


def test_a_server_may_want_to_see_a_certificate(pki: Path) -> None:
    known = ServerConfig(ca_file=f"{pki}/ca.pem", client_cert=f"{pki}/client.pem", client_key=f"{pki}/client.key")
    with tls_server(pki, wants_certificate=True) as url:
        assert get(url, known) == b"hello"
        with pytest.raises(ServerError, match="cannot be reached"):
            get(url, ServerConfig(ca_file=f"{pki}/ca.pem"))
    with pytest.raises(ConfigError, match=r"client certificate .*client.pem cannot be used"):
        HttpClient(url, ServerConfig(client_cert=f"{pki}/client.pem"))  # without its key
    with pytest.raises(ConfigError, match=r"nothing.pem"):
        HttpClient(url, ServerConfig(client_cert=f"{pki}/nothing.pem"))


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs Debian's faketime")
@pytest.mark.parametrize(("shift", "said"), [("-10y", "not valid yet"), ("+10y", "has expired")])
def test_a_wrong_clock_is_named_where_a_certificate_is_refused(pki: Path, shift: str, said: str) -> None:
    code = (
        "import sys; from tinylcm.http import HttpClient; from tinylcm.config import ServerConfig\n"
        "HttpClient(sys.argv[1], ServerConfig(ca_file=sys.argv[2])).request('GET', '/')"
    )
    year = time.gmtime().tm_year + (10 if shift[0] == "+" else -10)
    with tls_server(pki) as url:
        done = subprocess.run(
            ["faketime", "-f", shift, sys.executable, "-c", code, url, f"{pki}/ca.pem"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert said in done.stderr and f"believes that it is {year}" in done.stderr, done.stderr[-500:]
