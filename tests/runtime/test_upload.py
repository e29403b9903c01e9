"""Blobs on their way: kept, sent in pieces to a real server, resumed after a cut, deleted when they are there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Sphere, device_config, enrol, make_keys, sphere
from scripted import Reply, Request, scripted_server
from tinylcm import Device
from tinylcm.config import ServerConfig
from tinylcm.errors import DeviceError, ServerError
from tinylcm.http import HttpClient
from tinylcm.identity import load_identity
from tinylcm.upload import BLOB_BYTES_MAX, PIECE_BYTES, Spool, upload

DATA = random.Random(1).randbytes(2 * PIECE_BYTES + 12345)
NAME = hashlib.sha256(DATA).hexdigest()


class Peer:
    """A server that keeps blobs in memory, and cuts the connection when it is told to."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.whole: dict[str, bytes] = {}
        self.cuts: set[int] = set()
        self.refuse = 0
        self.puts = 0

    def answer(self, request: Request) -> Reply:
        name = request.path.rsplit("/", 1)[1]
        if request.method == "HEAD":
            have = self.whole.get(name, self.parts.get(name, b""))
            complete = "?1" if name in self.whole else "?0"
            return Reply(body=b"", headers={"Upload-Offset": str(len(have)), "Upload-Complete": complete})
        self.puts += 1
        if self.refuse:
            return Reply(self.refuse, b'{"detail": "no"}')
        first = int(request.headers["Content-Range"].split(" ")[1].split("-")[0])
        size = int(request.headers["Content-Range"].split("/")[1])
        have = self.parts.get(name, b"")
        if first != len(have):
            return Reply(409, b"{}")
        self.parts[name] = have + request.body
        if self.puts in self.cuts:
            return Reply(202, b"lost answer", cut_after=3)
        if len(self.parts[name]) < size:
            return Reply(202, b"")
        self.whole[name] = self.parts.pop(name)
        return Reply(201, b"")


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def client(peer: Peer) -> Iterator[HttpClient]:
    with scripted_server(peer.answer) as (url, _):
        made = HttpClient(url, ServerConfig(timeout_s=5))
        yield made
        made.close()


def test_a_blob_goes_in_pieces_and_its_progress_is_told(client: HttpClient, peer: Peer) -> None:
    told: list[int] = []
    upload(client, NAME, DATA, progress=told.append)
    assert peer.whole == {NAME: DATA} and sum(told) == len(DATA) and len(told) == 3
    upload(client, NAME, DATA)
    assert peer.puts == 3  # it is there already


@pytest.mark.parametrize("cut", [1, 2])
def test_a_lost_answer_costs_nothing_but_a_look(client: HttpClient, peer: Peer, tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path / "blobs")
    spool.keep(DATA)
    peer.cuts = {cut}
    with pytest.raises(ServerError):
        spool.send(client)
    assert len(spool.pending()) == 1
    assert spool.send(client) == 1
    assert peer.whole == {NAME: DATA} and spool.pending() == [] and peer.puts == 3


def test_a_server_that_has_another_part_is_asked_again_but_not_for_ever(client: HttpClient, peer: Peer) -> None:
    peer.parts[NAME] = DATA[:1000]
    upload(client, NAME, DATA)
    assert peer.whole == {NAME: DATA}
    peer.whole.clear()
    peer.refuse = 409
    with pytest.raises(ServerError, match="409"):
        upload(client, NAME, DATA)
    assert peer.puts < 12


@pytest.mark.parametrize(("status", "left"), [(413, 0), (422, 0), (507, 1), (503, 1), (401, 1)])
def test_what_can_never_be_taken_is_given_up_and_the_rest_waits(
    client: HttpClient, peer: Peer, tmp_path: Path, status: int, left: int
) -> None:
    spool = Spool(tmp_path)
    spool.keep(b"abc")
    peer.refuse = status
    if left:
        with pytest.raises(ServerError, match=str(status)):
            spool.send(client)
    else:
        assert spool.send(client) == 0
    assert len(spool.pending()) == left


def test_a_damaged_blob_is_given_up_and_the_others_go(client: HttpClient, peer: Peer, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    names = [spool.keep(bytes([n]) * 100) for n in range(3)]
    (tmp_path / names[1]).write_bytes(b"damaged")
    (tmp_path / ".half").write_bytes(b"left by a cut")
    assert spool.send(client) == 2 and spool.pending() == [] and not (tmp_path / ".half").exists()
    assert set(peer.whole) == {names[0], names[2]}


def test_the_spool_has_bounds(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=1000)
    spool.keep(b"x" * 600)
    with pytest.raises(DeviceError, match="600 bytes wait"):
        spool.keep(b"y" * 600)
    with pytest.raises(DeviceError, match="at most"):
        spool.keep(bytes(BLOB_BYTES_MAX + 1))
    assert spool.size() == 600


# A real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sphere]:
    with sphere(tmp_path_factory.mktemp("sphere")) as running:
        yield running


def test_a_device_uploads_after_its_records_and_goes_on_after_the_server_was_killed(
    server: Sphere, tmp_path: Path
) -> None:
    keys = make_keys(tmp_path / "keys")
    config = device_config(tmp_path / "device")
    enrol(config, server.join(keys / "root.pub"))
    identity = load_identity(config.data / "identity.json")
    assert identity is not None
    client = HttpClient(server.url, config.server, key=identity.key)
    first = DATA[:PIECE_BYTES]
    headers = {"Content-Range": f"bytes 0-{len(first) - 1}/{len(DATA)}", "Content-Type": "application/octet-stream"}
    assert client.request("PUT", f"/api/v1/blobs/{NAME}", first, headers).status == 202
    client.close()
    server.kill()
    server.start()
    with Device.open(config, background=False) as device:
        assert device.agent.blobs.keep(DATA) == NAME
        device.sync()
        assert device.agent.blobs.pending() == [] and device.agent.last_error == ""
    assert server.client.blob(NAME) == DATA
