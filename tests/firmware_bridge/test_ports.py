"""Ports: what is wrong with one is said in words that help, one program has it alone, and an end is an end."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_bridge.errors import LinkError
from firmware_bridge.ports import Port, expand, list_ports


@pytest.fixture
def pair() -> Iterator[tuple[int, int, str]]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    yield master, slave, os.ttyname(slave)
    for fd in (master, slave):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_bytes_go_both_ways_and_nothing_is_no_end(pair: tuple[int, int, str]) -> None:
    master, _, path = pair
    port = Port(path)
    assert port.read() == b"" and not port.wait(0.01)
    os.write(master, b"in")
    assert port.wait(1) and port.read() == b"in"
    assert port.write(b"out") == 3 and os.read(master, 10) == b"out"
    port.baud = 9600
    assert port.baud == 9600 and port.read() == b""
    assert port.byte_s == 0.0  # a pty takes no time for a byte
    port.close()
    port.close()


def test_two_programs_on_one_port_is_said(pair: tuple[int, int, str]) -> None:
    port = Port(pair[2])
    with pytest.raises(LinkError, match="in use by another program"):
        Port(pair[2])
    port.close()
    Port(pair[2]).close()


def test_no_permission_names_the_group(pair: tuple[int, int, str]) -> None:
    path = Path(pair[2])
    group = path.stat().st_gid
    path.chmod(0o060)
    user = os.geteuid()
    try:
        if user == 0:
            os.chown(path, 0, 20)  # Debian's dialout
            os.seteuid(65534)
        with pytest.raises(LinkError) as caught:
            Port(str(path))
    finally:
        os.seteuid(user)
    assert "no permission to open" in str(caught.value)
    if user == 0:
        assert "belongs to group dialout: run `sudo usermod -aG dialout $USER`" in str(caught.value)
    else:
        assert str(group) or "group" in str(caught.value)


def test_a_port_that_not_even_its_group_may_read_is_said(pair: tuple[int, int, str]) -> None:
    path, user = Path(pair[2]), os.geteuid()
    path.chmod(0o000)
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(LinkError, match="not even its group"):
            Port(str(path))
    finally:
        os.seteuid(user)


def test_what_is_not_there_or_no_port_is_said(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="not there: is the board plugged in"):
        Port(str(tmp_path / "ttyACM7"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(LinkError, match="no serial port"):
        Port(str(tmp_path / "file"))
    for url in ("socket://", "socket://host", "socket://host:port", "socket://[:1"):
        with pytest.raises(LinkError, match="expected socket://HOST:PORT"):
            Port(url)


def test_an_unplugged_port_is_an_error_and_not_silence(pair: tuple[int, int, str]) -> None:
    master, slave, path = pair
    port = Port(path)
    os.close(slave)
    os.close(master)
    assert port.wait(1)
    with pytest.raises(LinkError, match="broke off"):
        port.read()
    with pytest.raises(LinkError, match="broke off"):
        port.write(b"x")
    port.close()


def test_a_socket_is_a_port_without_a_rate() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = Port(f"socket://127.0.0.1:{server.getsockname()[1]}")
        other, _ = server.accept()
        port.write(b"out")
        assert other.recv(10) == b"out"
        port.baud = 9600
        assert (port.baud, port.has_baud, port.byte_s, port.read()) == (0, False, 0.0, b"")
        other.close()
        assert port.wait(1)
        with pytest.raises(LinkError, match="it ended"):
            port.read()
        port.close()
    with pytest.raises(LinkError, match="cannot be reached"):
        Port(f"socket://127.0.0.1:{server_port()}")


def server_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_patterns_are_ports_each_once(tmp_path: Path) -> None:
    (tmp_path / "ttyACM1").touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "ttyACM1")
    found = expand([str(tmp_path / "by-*"), str(tmp_path / "ttyACM*"), "socket://127.0.0.1:5", "/nowhere/*"])
    assert found == [str(tmp_path / "ttyACM1"), "socket://127.0.0.1:5"]
    assert expand([]) == [info.path for info in list_ports()]


def test_without_pyserial_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, pair: tuple[int, int, str]) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(LinkError, match=r"tinymlops\[bridge\]"):
        list_ports()
    with pytest.raises(LinkError, match=r"tinymlops\[bridge\]"):
        Port(pair[2])
