"""The device's HTTP: one keep-alive connection, every answer and time bounded, TLS always verified.

Through a proxy https travels in a tunnel (CONNECT), so the server's certificate is verified as without one and the
proxy sees no key.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import urllib3

from .config import ServerConfig
from .errors import ConfigError, ServerError

ANSWER_BYTES_MAX: Final = 4 << 20
CA_BYTES_MAX: Final = 256 << 10
_CHUNK_BYTES: Final = 64 << 10
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL
_CAUSES_MAX: Final = 10


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


def proxy_for(url: str, setting: str) -> str:
    """The proxy on the way to an address, or empty.

    Args:
        url: the address.
        setting: `[server] proxy`; with `environment`, HTTPS_PROXY and NO_PROXY say, and not for this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not setting or (is_loopback(host) and setting == "environment"):
        return ""
    if setting != "environment":
        return setting
    proxies = getproxies_environment()
    return "" if proxy_bypass(host) else proxies.get(parts.scheme, "")


def _make_pool(url: str, server: ServerConfig, context: ssl.SSLContext) -> urllib3.PoolManager:
    timeout = urllib3.Timeout(connect=server.timeout_s, read=server.timeout_s)
    proxy = proxy_for(url, server.proxy)
    if not proxy:
        return urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, timeout=timeout, ssl_context=context)
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the proxy {proxy!r:.200} is no http(s) address; expected http://host:port")
    headers = {}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.util.make_headers(proxy_basic_auth=login)
    return urllib3.ProxyManager(
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
        num_pools=1,
        maxsize=1,
        retries=False,
        timeout=timeout,
        ssl_context=context,
        proxy_headers=headers,
    )


def _make_context(server: ServerConfig, ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA file {ca_file} cannot be used: {error}") from error
    if server.client_cert:
        try:
            context.load_cert_chain(server.client_cert, server.client_key or None)
        except (OSError, ssl.SSLError) as error:
            names = " and ".join(filter(None, (server.client_cert, server.client_key)))
            raise ConfigError(f"the client certificate {names} cannot be used: {error}") from error
    return context


class HttpClient:
    """Requests to one server.

    Args:
        url: base address.
        server: timeouts, proxy and certificates: see `tinylcm.config.ServerConfig`. Its `ca_file` stands for the
            authority, else `ca_file` here, else the system's.
        key: bearer key, or empty.
        ca_file: PEM of an authority.

    Raises:
        ConfigError: the address is not safe, or a file is none.
    """

    def __init__(self, url: str, server: ServerConfig | None = None, *, key: str = "", ca_file: str = "") -> None:
        server = server or ServerConfig()
        check_url(url, insecure=server.insecure)
        self._base = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = _make_pool(url, server, _make_context(server, server.ca_file or ca_file))

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
            ServerError: unreachable, or the answer is cut off or larger than `ANSWER_BYTES_MAX`.
        """
        with self._open(method, path, body, headers or {}) as response:
            data = response.read(ANSWER_BYTES_MAX + 1, decode_content=False)
            if len(data) > ANSWER_BYTES_MAX:
                response.close()
                raise ServerError(f"the answer of {self._base} is larger than {ANSWER_BYTES_MAX} bytes")
            found = _lower(response.headers)
            announced = found.get("content-length", "")
            if method != "HEAD" and announced.isascii() and announced.isdecimal() and len(data) < float(announced):
                response.close()
                raise ServerError(f"the answer of {self._base} was cut off after {len(data)} of {announced} bytes")
            return Answer(response.status, found, data)

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


def _reason(error: BaseException) -> str:
    """What a person can act on: the cause at the bottom, and the clock where a certificate's time is the matter."""
    cause: BaseException = error
    for _ in range(_CAUSES_MAX):
        inner = cause.__cause__ or getattr(cause, "original_error", None)
        if not isinstance(inner, BaseException):
            inner = next((item for item in cause.args if isinstance(item, BaseException)), None)
        if inner is None:
            break
        cause = inner
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in (_NOT_YET_VALID, _EXPIRED):
        today = time.strftime("%Y-%m-%d", time.gmtime())
        if cause.verify_code == _NOT_YET_VALID:
            return f"its certificate is not valid yet; this device believes that it is {today}: set its clock"
        return f"its certificate has expired; this device believes that it is {today}: renew it, or set the clock"
    text = str(cause) or type(cause).__name__
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        text = text.split(": ", 1)[-1]
    return f"the proxy: {text}" if isinstance(error, urllib3.exceptions.ProxyError) else text


def fetch_ca(url: str, pin: str, server: ServerConfig | None = None) -> bytes:
    """Fetch the server's authority and accept it only if its hash is the join string's pin.

    The connection itself is not verified: what comes is public, and nothing but the pinned bytes is believed.

    Raises:
        ServerError: unreachable, or another certificate came.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    pool = _make_pool(url, server or ServerConfig(), context)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)  # the pin is what is believed
            response = pool.request("GET", url.rstrip("/") + "/api/v1/ca", preload_content=False, redirect=False)
        data = response.read(CA_BYTES_MAX, decode_content=False)
        response.close()
    except urllib3.exceptions.HTTPError as error:
        raise ServerError(f"{url} cannot be reached: {_reason(error)}") from error
    finally:
        pool.clear()
    try:
        found = "sha256:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(data.decode("ascii").strip())).hexdigest()
    except ValueError as error:
        raise ServerError(f"{url} did not answer with a certificate (status {response.status})") from error
    if found != pin:
        raise ServerError(f"{url} shows authority {found}, the join string pins {pin}: this is another server")
    return data
