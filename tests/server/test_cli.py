"""`tinysphere` as an operator types it."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Sphere, device_config, enrol, make_keys, run, sphere
from tinylcm import Device, ServerError
from tinylcm.identity import Join
from tinysphere.cli import make_parser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sphere]:
    with sphere(tmp_path) as running:
        yield running


@pytest.mark.long
def test_data_scientists_and_engineers_work_over_http(server: Sphere, tmp_path: Path, activity: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    run("trust", str(keys / "root.pub"), "--data", str(server.data))
    environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
    model = [str(activity / "model.onnx"), "--manifest", str(activity / "model.toml")]
    training = ["--meta", "run_id=r-1", "--meta", 'training={"epochs": 3}']
    uploaded = run("upload", *model, "--key", str(keys / "release.key"), *training, "--json", **environment)
    made = json.loads(uploaded.stdout)
    assert made["version"] == "1.0.0" and made["lineage"]["run_id"] == "r-1"
    assert made["metadata"]["training"] == {"epochs": 3}
    assert "run_id=r-1" in run("model", "show", "activity", **environment).stdout
    run("model", "alias", "activity", "champion", "1.0.0", **environment)
    run("model", "fetch", "activity", "@champion", str(tmp_path / "got.tlm"), **environment)
    assert hashlib.sha256((tmp_path / "got.tlm").read_bytes()).hexdigest() == made["sha256"]
    signed = run("upload", str(tmp_path / "got.tlm"), "--meta", "a=b", code=2, **environment)
    assert "signed as it is" in signed.stderr
    assert "deployment 1: activity 1.0.0 to all" in run("deploy", "activity", "1.0.0", **environment).stdout
    assert "activity" in run("models", **environment).stdout
    assert "active" in run("deployments", **environment).stdout
    assert json.loads(run("events", "--json", **environment).stdout) == {"items": []}
    assert "tinysphere join create" in run("devices", **environment).stdout
    config = device_config(tmp_path / "device")
    device = enrol(config, server.join(keys / "root.pub")).device_id
    with Device.open(config, background=False) as opened:
        opened.sync()
    assert "watch-01" in run("devices", **environment).stdout
    labelled = json.loads(run("device", device, "--label", "site=berlin", "--json", **environment).stdout)
    assert labelled["labels"] == {"site": "berlin"}
    given = run("command", "site=berlin", "capture", "--arg", "windows=3", "--arg", "model=activity", **environment)
    number = given.stdout.split()[1].rstrip(":")
    assert "matches no device" in run("command", "site=rome", "ping", code=1, **environment).stderr
    assert "KEY=VALUE" in run("command", "all", "ping", "--arg", "x", code=2, **environment).stderr
    assert "capture" in run("commands", **environment).stdout
    shown = json.loads(run("commands", number, "--json", **environment).stdout)
    assert shown["args"] == {"model": "activity", "windows": 3} and shown["states"] == {"waiting": 1}
    (tmp_path / "fleet.toml").write_text("[server]\nsync_interval_s = 5\n")
    assert "version 1 for all" in run("config", "set", str(tmp_path / "fleet.toml"), **environment).stdout
    assert json.loads(run("config", "show", **environment).stdout)["settings"] == {"server": {"sync_interval_s": 5}}
    (tmp_path / "fleet.toml").write_text("[server]\ninsecure = true\n")
    assert (
        "settings.server.insecure" in run("config", "set", str(tmp_path / "fleet.toml"), code=1, **environment).stderr
    )
    assert "aborted" in run("abort", "1", **environment).stdout


def test_mistakes_over_http_are_one_line(server: Sphere, tmp_path: Path, activity: Path) -> None:
    environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": "ts_00000000_wrong"}
    wrong = run("devices", code=1, **environment)
    assert "401" in wrong.stderr and wrong.stderr.count("\n") == 1 and "ts_00000000_wrong" not in wrong.stderr
    assert "TINYSPHERE_URL" in run("devices", code=2, TINYSPHERE_URL="", TINYSPHERE_TOKEN="").stderr
    environment["TINYSPHERE_TOKEN"] = server.token
    model = str(activity / "model.onnx")
    assert "does not exist" in run("upload", "none.tlm", code=2, **environment).stderr
    assert "--manifest and --key" in run("upload", model, code=2, **environment).stderr
    keyless = ["--manifest", str(activity / "model.toml"), "--key", str(tmp_path / "none.key")]
    assert "does not exist" in run("upload", model, *keyless, code=1, **environment).stderr
    assert "upload it first" in run("deploy", "x", "1", code=1, **environment).stderr


def test_a_huge_body_is_refused_and_the_server_stays_small(server: Sphere) -> None:
    """A gigabyte, claimed and then really sent in chunks: the answer comes early and memory does not follow."""
    import psutil

    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    head = f"POST /api/v1/deployments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    for framing, piece in (
        (f"Content-Length: {1 << 30}\r\n\r\n", b"x" * 65536),
        ("Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall((head + framing).encode())
            sent = 0
            try:
                while sent < 1 << 30:
                    connection.sendall(piece)
                    sent += len(piece)
            except OSError:
                pass  # the server has closed: it does not read what it will not take
            assert sent < 64 << 20
    assert process.memory_info().rss - before < 50 << 20
    assert server.client.devices() == []


def test_secrets_are_never_in_the_log(server: Sphere, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    config = device_config(tmp_path / "device")
    join = server.join(keys / "root.pub")
    identity = enrol(config, join)
    with Device.open(config, background=False) as device:
        device.sync()
    with pytest.raises(ServerError):
        enrol(device_config(tmp_path / "two"), join)
    server.stop()
    log = (tmp_path / "server.log").read_text()
    for secret in (server.token, identity.secret, Join.parse(join).token):
        assert secret not in log


def test_wrong_usage_exits_2() -> None:
    for arguments in ([], ["fly"], ["token"], ["serve"], ["token", "create", "--data", "d", "--role", "king"]):
        run(*arguments, code=2)
    assert make_parser().prog == "tinysphere"
