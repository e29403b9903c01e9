"""The device's HTTP: one keep-alive connection, every answer and time bounded, TLS always verified."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

import urllib3

from .errors import ConfigError, ServerError

ANSWER_BYTES_MAX: Final = 4 << 20
CA_BYTES_MAX: Final = 256 << 10
_CHUNK_BYTES: Final = 64 << 10


def is_loopback(host: str) -> bool:
    """Whether an address stays inside this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(url: str, *, insecure: bool) -> None:
    """Refuse plain http to another machine: a key that is sent in the clear is no key.

    Raises:
        ConfigError: not http(s), or not safe.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r:.200} is no http(s) address")
    if parts.scheme == "http" and not insecure and not is_loopback(parts.hostname):
        raise ConfigError(
            f"{parts.hostname} is not this machine and the address has no TLS: keys and data would travel in the "
            "clear. Use https, or name the choice with --insecure (server.insecure = true)"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Requests to one server.

    Args:
        url: base address.
        key: bearer key, or empty.
        ca_file: PEM of an authority of one's own; empty: the system's.
        insecure: allow plain http to another machine.
        timeout_s: of connecting and of each read.

    Raises:
        ConfigError: the address is not safe, or the CA file is none.
    """

    def __init__(
        self, url: str, *, key: str = "", ca_file: str = "", insecure: bool = False, timeout_s: float = 30.0
    ) -> None:
        check_url(url, insecure=insecure)
        self._base = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the CA file {ca_file} cannot be used: {error}") from error
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            ssl_context=context,
        )

    @contextmanager
    def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        try:
            response = self._pool.request(
                method,
                self._base + path,
                body=body,
                headers={**self._headers, **headers},
                preload_content=False,
                redirect=False,
            )
            try:
                yield response
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise ServerError(f"{self._base} cannot be reached: {_reason(error)}") from error

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and read the whole answer.

        Raises:
            ServerError: unreachable, or the answer is larger than `ANSWER_BYTES_MAX`.
        """
        with self._open(method, path, body, headers or {}) as response:
            data = response.read(ANSWER_BYTES_MAX + 1, decode_content=False)
            if len(data) > ANSWER_BYTES_MAX:
                response.close()
                raise ServerError(f"the answer of {self._base} is larger than {ANSWER_BYTES_MAX} bytes")
            return Answer(response.status, _lower(response.headers), data)

    @contextmanager
    def download(self, path: str, offset: int) -> Iterator[tuple[int, Mapping[str, str], Iterator[bytes]]]:
        """Open a ranged GET from `offset` on: status, headers and the body in pieces."""
        headers = {"Range": f"bytes={offset}-", "Accept-Encoding": "identity"} if offset else {}
        with self._open("GET", path, None, headers) as response:
            try:
                yield response.status, _lower(response.headers), response.stream(_CHUNK_BYTES, decode_content=False)
            finally:
                response.close()  # a body that was not read to its end cannot be kept alive

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    cause = error.__cause__ or error
    text = str(cause) or type(cause).__name__
    return text.split(": ", 1)[-1] if isinstance(cause, urllib3.exceptions.NewConnectionError) else text


def fetch_ca(url: str, pin: str, *, timeout_s: float = 30.0) -> bytes:
    """Fetch the server's authority and accept it only if its hash is the join string's pin.

    The connection itself is not verified: what comes is public, and nothing but the pinned bytes is believed.

    Raises:
        ServerError: unreachable, or another certificate came.
    """
    parts = urlsplit(url)
    connection: HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = HTTPSConnection(parts.netloc, timeout=timeout_s, context=context)
    else:
        connection = HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/api/v1/ca")
        response = connection.getresponse()
        data = response.read(CA_BYTES_MAX)
    except (OSError, HTTPException) as error:
        raise ServerError(f"{url} cannot be reached: {error}") from error
    finally:
        connection.close()
    try:
        found = "sha256:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(data.decode("ascii").strip())).hexdigest()
    except ValueError as error:
        raise ServerError(f"{url} did not answer with a certificate (status {response.status})") from error
    if found != pin:
        raise ServerError(f"{url} shows authority {found}, the join string pins {pin}: this is another server")
    return data
