"""The device's HTTP against peers that are absent, slow to stop or lying."""

from __future__ import annotations

import hashlib
import socket

import pytest
from scripted import Reply, scripted_server
from tinylcm.errors import ConfigError, ServerError
from tinylcm.http import ANSWER_BYTES_MAX, HttpClient, check_url, fetch_ca, is_loopback


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
        client = HttpClient(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout_s=1)
        with pytest.raises(ServerError, match="cannot be reached"):
            client.request("GET", "/")


def test_an_endless_answer_is_cut_off() -> None:
    with scripted_server(lambda request: Reply(body=b"x" * (ANSWER_BYTES_MAX + 2))) as (url, _):
        client = HttpClient(url)
        with pytest.raises(ServerError, match="larger than"):
            client.request("GET", "/")
        client.close()


def test_a_download_that_breaks_is_a_server_error() -> None:
    with scripted_server(lambda request: Reply(body=b"x" * 1000, cut_after=10)) as (url, seen):
        client = HttpClient(url, timeout_s=2)
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
