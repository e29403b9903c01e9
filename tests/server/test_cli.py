"""`tinysphere` as an operator types it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fleet import Sphere, device_config, enrol, make_certificate, make_keys, run_cli, sphere
from tinylcm import ConfigError, Device, ServerError
from tinylcm.identity import Join
from tinysphere.cli import main, make_parser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sphere]:
    with sphere(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """The commands close the folder to others for their whole process; here that is ours."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "tinysphere.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_tokens_are_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path / "s")]
    assert main(["token", "create", *data, "--role", "viewer", "--name", "ada", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["token"].startswith("ts_") and made["role"] == "viewer"
    assert main(["token", "list", *data]) == 0
    listed = capsys.readouterr().out
    assert "ada" in listed and made["token"] not in listed
    assert main(["token", "revoke", made["id"], *data]) == 0
    capsys.readouterr()
    assert main(["token", "revoke", "none", *data]) == 1
    assert "no live token" in capsys.readouterr().err
    assert stat.S_IMODE((tmp_path / "s" / "tinysphere.db").stat().st_mode) == 0o600


def test_join_strings_are_made_beside_a_running_server(server: Sphere, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    join = Join.parse(server.join(keys / "root.pub"))
    assert join.url == server.url and join.root.startswith("sha256:")
    assert len(list((server.data / "roots").glob("*.pub"))) == 1
    arguments = ["join", "create", "--data", str(server.data), "--url", "nowhere", "--root", str(keys / "root.pub")]
    assert "no http(s) address" in run(*arguments, code=2).stderr


def test_a_server_keeps_to_this_machine_unless_told(tmp_path: Path) -> None:
    data = str(tmp_path / "s")
    refused = run("serve", "--host", "0.0.0.0", "--port", "0", "--data", data, code=2)
    assert "--insecure" in refused.stderr and refused.stderr.count("\n") == 1
    (tmp_path / "x.pem").write_text("no certificate")
    noise = str(tmp_path / "x.pem")
    assert "no certificate" in run("serve", "--data", data, "--tls-cert", noise, "--tls-key", noise, code=2).stderr
    assert "belong together" in run("serve", "--data", data, "--tls-cert", "x.pem", code=2).stderr


def test_one_folder_has_one_server_and_one_port_one_listener(server: Sphere, tmp_path: Path) -> None:
    assert "another TinySphere serves" in run("serve", "--port", "0", "--data", str(server.data), code=2).stderr
    other = run("serve", "--port", str(server.port), "--data", str(tmp_path / "other"), code=2)
    assert "cannot listen" in other.stderr
    assert "cannot listen" in run("serve", "--port", "99999", "--data", str(tmp_path / "other"), code=2).stderr


def test_a_server_stops_when_it_is_told(server: Sphere) -> None:
    assert server.process is not None
    start = time.monotonic()
    server.process.terminate()
    assert server.process.wait(15) in (0, -15)
    assert time.monotonic() - start < 12


def test_data_scientists_and_engineers_work_over_http(server: Sphere, tmp_path: Path, activity: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    run("trust", str(keys / "root.pub"), "--data", str(server.data))
    environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
    model = [str(activity / "model.onnx"), "--manifest", str(activity / "model.toml")]
    uploaded = run("upload", *model, "--key", str(keys / "release.key"), "--json", **environment)
    assert json.loads(uploaded.stdout)["version"] == "1.0.0"
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


def test_tls_with_an_authority_that_the_join_string_pins(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    keys = make_keys(tmp_path / "keys")
    data = tmp_path / "server"
    process = subprocess.Popen(
        [sys.executable, "-m", "tinysphere.cli", "serve", "--port", "0", "--data", str(data), "--tls-cert", str(cert),
         "--tls-key", str(key)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert url.startswith("https://")
        arguments = ["join", "create", "--data", str(data), "--url", url, "--root", str(keys / "root.pub")]
        join = run_cli("tinysphere.cli", *arguments, "--ca", str(cert))["join"]
        config = device_config(tmp_path / "device")
        assert enrol(config, join).device_id
        with Device.open(config, background=False) as device:
            assert device.sync() == 0
        other = run_cli("tinysphere.cli", *arguments, "--ca", str(cert))["join"]
        pin = other.index("ca=sha256:") + len("ca=sha256:")
        forged = other[:pin] + ("0" if other[pin] != "0" else "1") + other[pin + 1 :]
        with pytest.raises(ServerError, match="another server"):
            enrol(device_config(tmp_path / "two"), forged)
        unpinned = run_cli("tinysphere.cli", *arguments)["join"]
        with pytest.raises(ServerError, match="cannot be reached"):
            enrol(device_config(tmp_path / "three"), unpinned)  # the system does not know this authority
        plain = replace(Join.parse(unpinned), url=url.replace("https://127.0.0.1", "http://192.0.2.9"))
        with pytest.raises(ConfigError, match="--insecure"):
            enrol(device_config(tmp_path / "four"), plain.format())
    finally:
        process.terminate()
        process.wait(15)
        assert process.stdout is not None
        process.stdout.close()


def test_wrong_usage_exits_2() -> None:
    for arguments in ([], ["fly"], ["token"], ["serve"], ["token", "create", "--data", "d", "--role", "king"]):
        run(*arguments, code=2)
    assert make_parser().prog == "tinysphere"
