"""The Python client against a real server, and against one that lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Sphere, sphere
from models import make_package, make_signer
from scripted import Reply, Request, scripted_server
from tinylcm.keys import write_public
from tinysphere.client import Client, ClientError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sphere]:
    with sphere(tmp_path) as running:
        write_public(tmp_path / "root.pub", make_signer().keyset.root)
        running.trust(tmp_path / "root.pub")
        yield running


def test_a_script_uploads_deploys_and_reads(server: Sphere, tmp_path: Path) -> None:
    path = tmp_path / "p.tlm"
    path.write_bytes(make_package())
    sent: list[int] = []
    with Client(server.url, server.token) as client:
        assert client.upload(path, "gesture", progress=sent.append)["version"] == "1.0.0"
        assert sent[-1] == path.stat().st_size
        made = client.deploy("gesture", "1.0.0", key="once")
        assert client.deploy("gesture", "1.0.0", key="once")["id"] == made["id"]
        assert client.deployment(int(str(made["id"])))["state"] == "active"
        assert client.abort(int(str(made["id"])))["state"] == "aborted"
        assert [item["id"] for item in client.deployments()] == [made["id"]]
        assert [item["name"] for item in client.models()] == ["gesture"]
        assert client.devices() == client.events() == client.metrics() == []
        with pytest.raises(ClientError, match="no device") as caught:
            client.device("dnone")
        assert caught.value.status == 404
        with pytest.raises(ClientError, match="no drift event"):
            client.event(3)


def test_a_script_gives_commands_and_sets_what_devices_do(server: Sphere) -> None:
    with Client(server.url, server.token) as client:
        assert client.config()["version"] == 0
        assert client.set_config({"server": {"sync_interval_s": 5}})["version"] == 1
        assert client.set_config({})["version"] == 2 and client.config()["settings"] == {}
        with pytest.raises(ClientError, match="matches no device"):
            client.command("all", "ping")
        with pytest.raises(ClientError, match="no command 7"):
            client.command_state(7)
        assert client.commands() == []


def test_addresses_that_are_not_safe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="--insecure"):
        Client("http://192.0.2.1", "t")
    Client("http://192.0.2.1", "t", insecure=True).close()
    with pytest.raises(ClientError, match="no http"):
        Client("ftp://x", "t")
    with pytest.raises(ClientError, match="cannot be used"):
        Client("https://x", "t", ca_file=str(tmp_path / "none.pem"))


def test_a_busy_server_is_asked_again_a_few_times_only() -> None:
    replies = [
        Reply(503, b"{}", {"Retry-After": "0"}),
        Reply(503, b"{}", {"Retry-After": "0"}),
        Reply(body=b'{"id": 1}'),
    ]
    with scripted_server(lambda request: replies.pop(0)) as (url, seen), Client(url, "t") as client:
        assert client.deployment(1) == {"id": 1}
    assert len(seen) == 3
    busy = Reply(503, json.dumps({"detail": "later"}).encode(), {"Retry-After": "0"})
    with (
        scripted_server(lambda request: busy) as (url, seen),
        Client(url, "t") as client,
        pytest.raises(ClientError, match="later"),
    ):
        client.deployment(1)
    assert len(seen) == 4


def test_answers_of_something_else_are_refused() -> None:
    for body, said in ((b"<html>", "no JSON object"), (b"[1]", "no JSON object"), (b"{}", "holds no list")):
        with (
            scripted_server(lambda request, body=body: Reply(body=body)) as (url, _),
            Client(url, "t") as client,
            pytest.raises(ClientError, match=said),
        ):
            client.devices()


def test_a_list_that_never_ends_is_cut_off() -> None:
    endless = Reply(body=json.dumps({"items": [{"id": 1}] * 100, "next": "again"}).encode())
    with scripted_server(lambda request: endless) as (url, _), Client(url, "t") as client:
        assert len(client.events(most=250)) == 250


def test_a_server_that_is_not_there() -> None:
    with (
        Client("http://127.0.0.1:1", "t", timeout_s=1) as client,
        pytest.raises(ClientError, match="cannot be reached"),
    ):
        client.devices()


def test_a_script_finds_and_fetches_versions(server: Sphere, tmp_path: Path) -> None:
    packages = {version: make_package(version=version, bias=float(version[0])) for version in ("1.0.0", "2.0.0")}
    with Client(server.url, server.token) as client:
        for data in packages.values():
            (tmp_path / "p.tlm").write_bytes(data)
            client.upload(tmp_path / "p.tlm", "gesture")
        assert [item["version"] for item in client.versions("gesture")] == ["2.0.0", "1.0.0"]
        client.set_alias("gesture", "champion", "1.0.0")
        assert client.version("gesture", "@champion")["version"] == "1.0.0"
        got = tmp_path / "got.tlm"
        assert client.fetch("gesture", "@champion", got)["version"] == "1.0.0" and got.read_bytes() == packages["1.0.0"]
        with pytest.raises(ClientError, match="has no alias"):
            client.fetch("gesture", "@none", got)
        with pytest.raises(ClientError, match="no package of this hash"):
            client.download("0" * 64, got)
        assert got.read_bytes() == packages["1.0.0"] and sorted(tmp_path.glob(".*.part")) == []


def test_a_download_that_breaks_goes_on_where_it_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    data = bytes(range(256)) * 4000
    sha256 = hashlib.sha256(data).hexdigest()

    def part(request: Request) -> Reply:
        wanted = request.headers.get("Range")
        if wanted is None:
            return Reply(200, data, {}, cut_after=400_000)
        first = int(wanted[len("bytes=") : -1])
        return Reply(206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, 400_000)

    with scripted_server(part) as (url, seen), Client(url, "t") as client:
        client.download(sha256, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == data
        asked = [request.headers.get("Range", "bytes=0-") for request in seen]
        begins = [int(text[len("bytes=") : -1]) for text in asked]
        assert begins[0] == 0 and len(begins) >= 3 and begins == sorted(set(begins)), (
            "each goes on behind the one before"
        )
        (tmp_path / "got").write_bytes(b"before")
        with pytest.raises(ClientError, match="its hash is another"):
            client.download("0" * 64, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"before" and [path.name for path in tmp_path.iterdir()] == ["got"]
    lying = Reply(206, data[5:], {"Content-Range": f"bytes 5-{len(data) - 1}/{len(data)}"})
    for answer, said in ((lying, "another part"), (Reply(302), "answered 302"), (Reply(503), "answered 503")):
        replies = [Reply(200, data, {}, cut_after=400_000)]
        with (
            scripted_server(lambda request, a=answer, r=replies: r.pop() if r else a) as (url, _),
            Client(url, "t") as client,
            pytest.raises(ClientError, match=said),
        ):
            client.download(sha256, tmp_path / "other")
    assert not (tmp_path / "other").exists()
