"""The Python client against a real server, and against one that lies."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Sphere, device_config, sphere
from models import make_package, make_signer
from scripted import Reply, Request, scripted_server
from tinylcm.device import enrol
from tinylcm.keys import write_public
from tinysphere.app import ROUTES
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


def test_a_stream_is_read_event_by_event_and_what_is_none_is_refused() -> None:
    head = b"retry: 3000\n\nid: a-1\nevent: ready\ndata: {}\n\n: alive\n\n"
    body = head + b'id: a-2\nevent: drift\ndata: {"at": 1}\n\nid: a-3\n'
    with scripted_server(lambda request: Reply(body=body)) as (url, seen), Client(url, "t") as client:
        found = list(client.follow(types="drift", device="d1", after="a-0", again=False))
    assert found == [{"id": "a-1", "event": "ready"}, {"at": 1, "id": "a-2", "event": "drift"}]
    assert seen[0].path == "/api/v1/events?types=drift&device=d1" and seen[0].headers["Last-Event-ID"] == "a-0"
    for body, said in ((b"data: {\n\n", "broke"), (b"x" * (2 << 20), "larger than")):
        with (
            scripted_server(lambda request, body=body: Reply(body=body)) as (url, _),
            Client(url, "t") as client,
            pytest.raises(ClientError, match=said),
        ):
            list(client.follow(again=False))
    with (
        scripted_server(lambda request: Reply(403, b'{"detail": "no"}')) as (url, seen),
        Client(url, "t") as client,
        pytest.raises(ClientError, match="no"),
    ):
        next(client.follow())  # what asking again cannot mend is not asked again
    assert len(seen) == 1


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


# Everything that the API can ---------------------------------------------------------------------------------

SHA = "ab" * 32
# How each method is called, and the routes that it asks.
CALLS: dict[str, Callable[[Client], object]] = {
    "abort": lambda c: c.abort(1),
    "alias": lambda c: c.alias("m", "a"),
    "aliases": lambda c: c.aliases("m"),
    "alive": lambda c: c.alive(),
    "announce": lambda c: c.announce("s", "n"),
    "audit": lambda c: c.audit(),
    "authority": lambda c: c.authority(),
    "blob": lambda c: c.blob(SHA),
    "blob_link": lambda c: c.blob_link(SHA, 60),
    "change_device": lambda c: c.change_device("d1", name="n"),
    "command": lambda c: c.command("all", "ping"),
    "command_devices": lambda c: c.command_devices(1, "done"),
    "command_state": lambda c: c.command_state(1),
    "commands": lambda c: c.commands(),
    "compare": lambda c: c.compare("m", "1", "2"),
    "config": lambda c: c.config("group:g"),
    "config_diff": lambda c: c.config_diff("all", 1, 2),
    "config_scopes": lambda c: c.config_scopes(),
    "config_versions": lambda c: c.config_versions(),
    "counters": lambda c: c.counters(),
    "create_join": lambda c: c.create_join("http://h"),
    "create_token": lambda c: c.create_token("viewer"),
    "deploy": lambda c: c.deploy("m", "1"),
    "deployment": lambda c: c.deployment(1),
    "deployment_devices": lambda c: c.deployment_devices(1),
    "deployments": lambda c: c.deployments(),
    "device": lambda c: c.device("d1"),
    "device_config": lambda c: c.device_config("d1"),
    "device_health": lambda c: c.device_health("d1"),
    "devices": lambda c: c.devices(),
    "download": lambda c: c.download(PACKAGE_SHA, Path(tempfile.mkdtemp()) / "got"),
    "event": lambda c: c.event(1),
    "events": lambda c: c.events(),
    "expected": lambda c: c.expected(),
    "export_devices": lambda c: c.export_devices(),
    "fetch": lambda c: c.fetch("m", "1", Path(tempfile.mkdtemp()) / "got"),
    "fleet_health": lambda c: c.fleet_health(),
    "follow": lambda c: list(c.follow(again=False)),
    "group": lambda c: c.group("g"),
    "groups": lambda c: c.groups(),
    "import_devices": lambda c: c.import_devices("id,name\n"),
    "joins": lambda c: c.joins(),
    "label_device": lambda c: c.label_device("d1", {}),
    "logs": lambda c: c.logs(),
    "metrics": lambda c: c.metrics(),
    "metrics_csv": lambda c: c.metrics_csv(),
    "model": lambda c: c.model("m"),
    "models": lambda c: c.models(),
    "package": lambda c: c.package(SHA),
    "package_link": lambda c: c.package_link(SHA),
    "pages": lambda c: list(c.pages("/api/v1/models", {})),
    "performance": lambda c: c.performance("m"),
    "ready": lambda c: c.ready(),
    "remove_alias": lambda c: c.remove_alias("m", "a"),
    "remove_group": lambda c: c.remove_group("g"),
    "remove_version": lambda c: c.remove_version("m", "1"),
    "request": lambda c: c.request("GET", "/api/v1/models"),
    "retire_device": lambda c: c.retire_device("d1"),
    "revoke_device": lambda c: c.revoke_device("d1"),
    "revoke_join": lambda c: c.revoke_join("j"),
    "revoke_token": lambda c: c.revoke_token("t"),
    "set_alias": lambda c: c.set_alias("m", "a", "1"),
    "set_config": lambda c: c.set_config({}, "device:d1"),
    "set_group": lambda c: c.set_group("g", "all"),
    "tokens": lambda c: c.tokens(),
    "upload": lambda c: c.upload(Path(__file__), "m"),
    "usage": lambda c: c.usage(by="model"),
    "usage_csv": lambda c: c.usage_csv(),
    "version": lambda c: c.version("m", "1"),
    "versions": lambda c: c.versions("m"),
    "withdraw": lambda c: c.withdraw("s"),
}
# What only a device asks, with its own key: `tinylcm` speaks it, see docs/wire.md.
OF_DEVICES = {
    ("POST", "/api/v1/devices/enrol"),
    ("POST", "/api/v1/devices/key"),
    ("POST", "/api/v1/sync"),
    ("HEAD", "/api/v1/blobs/{sha256}"),
    ("PUT", "/api/v1/blobs/{sha256}"),
}
# Methods that no command calls, and why.
NOT_ON_THE_COMMAND_LINE = {
    "alive": "a probe's question: curl /healthz",
    "ready": "a probe's question: curl /readyz",
    "counters": "Prometheus asks it itself",
    "authority": "devices fetch it when they enrol",
    "alias": "`model show` lists every alias",
    "group": "`group list` shows every group",
    "model": "`model show` reads its versions and aliases",
    "version": "`model show` shows every version",
    "package": "`model fetch` downloads it into a file",
    "download": "`model fetch` calls fetch, of which it is a part",
    "label_device": "`device --label` calls change_device, of which it is a part",
    "package_link": "for programs that fetch from the object store",
    "blob_link": "for programs that fetch from the object store",
    "blob": "for programs that decode samples: tinylcm.decode_sample",
    "event": "its evidence is a histogram, which the dashboard draws",
    "pages": "how the other methods read lists",
    "request": "how the other methods ask",
    "close": "ends the connection",
}
PACKAGE_BYTES = b"a package"
PACKAGE_SHA = hashlib.sha256(PACKAGE_BYTES).hexdigest()
ANSWER = json.dumps(
    {"items": [], "next": None, "points": [], "version": 1, "row_version": 1, "sha256": PACKAGE_SHA}
).encode()


def answer(request: Request) -> Reply:
    """What each method can read."""
    return Reply(body=PACKAGE_BYTES if re.search("/packages/[0-9a-f]+$", request.path) else ANSWER)


def test_every_route_has_a_method_and_every_method_asks_a_route() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert set(CALLS) | {"close"} == methods
    patterns = {
        (route.method, route.path): re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route.path))) for route in ROUTES
    }
    asked: set[tuple[str, str]] = set()
    with scripted_server(answer) as (url, seen), Client(url, "t") as client:
        for name, call in CALLS.items():
            before = len(seen)
            call(client)
            for request in seen[before:]:
                path = request.path.partition("?")[0]
                fits = [key for key, pattern in patterns.items() if pattern.fullmatch(path)]
                found = [key for key in fits if key[0] == request.method]
                assert found, f"{name} asks {request.method} {path}, which is no route"
                asked.add(min(found, key=lambda key: key[1].count("{")))
    assert {(route.method, route.path) for route in ROUTES} - asked == OF_DEVICES


@pytest.mark.source_tree
def test_every_method_has_a_command_or_a_reason_for_none() -> None:
    folder = Path(__file__).parent.parent.parent / "server"
    source = "".join((folder / name).read_text() for name in ("cli.py", "telemetry_cli.py", "access_cli.py"))
    called = {name for name in CALLS if re.search(rf"(client_of\(arguments\)|client)\.{name}\(", source)}
    reasons = {name for name, reason in NOT_ON_THE_COMMAND_LINE.items() if reason}
    assert set(CALLS) | {"close"} == called | reasons
    assert called & reasons == set()


def test_creations_are_sent_with_a_key_that_stays_the_same_when_they_are_sent_again() -> None:
    busy = [Reply(503, b"{}", {"Retry-After": "0"}), Reply(body=b'{"id": 1}')]
    with scripted_server(lambda request: busy.pop(0)) as (url, seen), Client(url, "t") as client:
        client.deploy("m", "1")
    keys = [request.headers["Idempotency-Key"] for request in seen]
    assert len(keys) == 2 and keys[0] == keys[1] and len(keys[0]) >= 16
    creations = ("announce", "command", "create_join", "create_token", "deploy", "import_devices")
    with scripted_server(answer) as (url, seen), Client(url, "t") as client:
        for name in creations:
            CALLS[name](client)
    keys = [request.headers["Idempotency-Key"] for request in seen if request.method == "POST"]
    assert len(set(keys)) == len(creations)


def test_the_client_needs_nothing_of_the_server() -> None:
    code = (
        "import sys, tinysphere.client;"
        "print(sorted({'starlette', 'msgspec', 'peewee', 'uvicorn', 'numpy', 'tinylcm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.source_tree
def test_the_page_about_the_client_runs(
    server: Sphere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "python-client.md"
    enrol(device_config(tmp_path / "device"), server.join(tmp_path / "root.pub"))
    monkeypatch.setenv("TINYSPHERE_URL", server.url)
    monkeypatch.setenv("TINYSPHERE_TOKEN", server.token)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    scope: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), scope)
    said = capsys.readouterr().out
    assert "0 predictions" in said and "404" in said and "group.set" in said
    assert "'key': 'server.sync_interval_s'" in said
