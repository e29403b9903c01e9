"""Certificates for trying things out, as TLS's own verifier sees them."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from tinysphere.certs import make_dev
from tinysphere.errors import StartError

NOW = 1_795_000_000.0


def shake_hands(folder: Path, host: str) -> str:
    """The version of TLS that both sides agree on, with the authority believed and the name checked."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks for
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as found:
            return str(found.version())
    finally:
        ours.close()
        thread.join(10)


def test_a_server_is_believed_under_each_of_its_names(tmp_path: Path) -> None:
    import time

    written = make_dev(tmp_path / "c", ["sphere.local", "127.0.0.1", "::1"], 30, time.time())
    assert [path.name for path in written] == ["ca.pem", "ca.key", "server.pem", "server.key"]
    for host in ("sphere.local", "127.0.0.1", "::1"):
        assert shake_hands(tmp_path / "c", host) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch"):
        shake_hands(tmp_path / "c", "other.local")
    for name in ("ca.key", "server.key"):
        assert (tmp_path / "c" / name).stat().st_mode & 0o077 == 0


def test_the_authority_stays_when_the_server_has_a_new_certificate(tmp_path: Path) -> None:
    import time

    make_dev(tmp_path, ["a.local"], 1, time.time())
    before = (tmp_path / "ca.pem").read_bytes()
    written = make_dev(tmp_path, ["b.local"], 1, time.time())
    assert [path.name for path in written] == ["server.pem", "server.key"]
    assert (tmp_path / "ca.pem").read_bytes() == before and shake_hands(tmp_path, "b.local")


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    make_dev(tmp_path, ["a.local"], 1, 1_000_000_000.0)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(tmp_path, "a.local")


@pytest.mark.parametrize(("hosts", "days"), [([], 1), (["a"], 0), (["a"], 826), (["a b\0"], 1), (["x" * 300], 1)])
def test_what_no_certificate_can_say_is_refused(tmp_path: Path, hosts: list[str], days: int) -> None:
    with pytest.raises(StartError):
        make_dev(tmp_path, hosts, days, NOW)


def test_an_authority_that_is_damaged_or_anothers_is_refused(tmp_path: Path) -> None:
    make_dev(tmp_path / "a", ["a"], 1, NOW)
    make_dev(tmp_path / "b", ["a"], 1, NOW)
    key = (tmp_path / "a" / "ca.key").read_bytes()
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(StartError, match="is not the key"):
        make_dev(tmp_path / "a", ["a"], 1, NOW)
    (tmp_path / "a" / "ca.key").write_bytes(key[: len(key) // 2])
    with pytest.raises(StartError, match="cannot be read"):
        make_dev(tmp_path / "a", ["a"], 1, NOW)
