"""What runs on the server's own machine."""

from __future__ import annotations

import json
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3
from fleet import Sphere, build_activity, device_config, enrol, make_certificate, make_keys, run, run_cli, sphere
from postgres import Cluster
from tinylcm import ConfigError, Device, ServerError
from tinylcm.identity import Join
from tinysphere.cli import main
from tinysphere.host_cli import _listen
from weed import Weed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sphere]:
    with sphere(tmp_path) as running:
        yield running


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
    pinned = run("trust", "--data", str(server.data)).stdout
    assert join.root in pinned and "cli" in pinned
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


def test_an_answer_is_sent_at_once() -> None:
    with (
        _listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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


def test_a_schema_is_shown_taken_and_given_back_only_on_purpose(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "s")]
    printed = run("migrate", "status", *data).stdout
    assert "0001_first" in printed and "pending" in printed
    assert json.loads(run("migrate", "up", *data, "--to", "0001_first", "--json").stdout) == {"taken": ["0001_first"]}
    run("migrate", "up", *data)
    assert "pending" not in run("migrate", "status", *data).stdout
    assert "say --yes" in run("migrate", "down", *data, code=2).stderr
    assert "not an applied" in run("migrate", "down", "--to", "nix", "--yes", *data, code=2).stderr
    run("migrate", "down", "--to", "0001_first", "--yes", *data)
    assert "nothing to do" not in run("migrate", "up", *data).stdout


@pytest.mark.long
def test_servers_on_one_postgresql_and_one_bucket_share_everything(
    tmp_path: Path, cluster: Cluster, weed: Weed, activity: Path
) -> None:
    """Nothing of what a server knows is in its own folder."""
    url = cluster.database()
    bucket = weed.bucket(f"b-{uuid.uuid4().hex[:12]}")
    environment = {"TINYSPHERE_DATABASE": url, "TINYSPHERE_S3": bucket, **weed.environment}
    data = ["--data", str(tmp_path / "server-0")]
    assert "tinysphere migrate up" in run("serve", "--port", "0", *data, code=2, **environment).stderr
    run("migrate", "up", *data, **environment)
    first, second = (Sphere(tmp_path / f"server-{n}", environment=environment).start() for n in range(2))
    try:
        keys = make_keys(tmp_path / "keys")
        first.trust(keys / "root.pub")
        package = build_activity(activity, keys, tmp_path / "activity.tlm")
        first.client.upload(package, "activity")
        first.client.deploy("activity", "1.0.0", "all")
        config = device_config(tmp_path / "device")
        enrol(config, first.join(keys / "root.pub"))
        identity = json.loads((config.data / "identity.json").read_text())
        (config.data / "identity.json").write_text(json.dumps({**identity, "url": second.url}))
        with Device.open(config, background=False) as device:
            device.sync()
            assert device.slots()["activity"].active is not None
            device.label("p-1", "walk")
            device.sync()
        first.kill()  # the other goes on, and has it all
        (listed,) = second.client.devices()
        assert listed["running"][0]["model"] == "activity"
    finally:
        first.stop()
        second.stop()


def test_an_address_that_is_none_is_a_start_error(tmp_path: Path) -> None:
    printed = run("serve", "--data", str(tmp_path / "s"), "--database", "sqlite:///x", code=2).stderr
    assert "postgresql://user@host/name" in printed
    nowhere = "postgresql://tiny:hunter2@127.0.0.1:9/none"
    printed = run("migrate", "up", "--data", str(tmp_path / "s"), "--database", nowhere, code=2).stderr
    assert "cannot be reached" in printed and "hunter2" not in printed


def test_the_audit_is_verified_on_the_servers_machine(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "s")]
    run("token", "create", "--role", "viewer", *data)
    head = json.loads(run("audit", "verify", "--json", *data).stdout)["head"]
    run("token", "create", "--role", "viewer", *data)
    assert "2 entries, whole" in run("audit", "verify", "--head", head, *data).stdout
    assert "cut off" in run("audit", "verify", "--head", "0" * 63 + "1", *data, code=1).stderr
    with sqlite3.connect(tmp_path / "s" / "tinysphere.db") as connection:
        connection.execute("UPDATE audit SET who = 'nobody' WHERE id = 1")
    connection.close()
    assert "broken at entry 1" in run("audit", "verify", *data, code=1).stderr


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_peer_is_who_it_says_only_through_the_proxy(tmp_path: Path, is_behind: bool) -> None:
    """Guesses are counted by address: who may name another one each time is never slowed down."""
    arguments = ("--behind-proxy", "127.0.0.1") if is_behind else ()
    server = Sphere(tmp_path / "server", arguments=arguments).start()
    pool = urllib3.PoolManager(retries=False)
    try:
        statuses = set()
        for number in range(120):
            headers = {"Authorization": "Bearer ts_00000000_x", "X-Forwarded-For": f"198.51.100.{number}"}
            statuses.add(pool.request("GET", f"{server.url}/api/v1/devices", headers=headers).status)
        assert statuses == ({401} if is_behind else {401, 429})
    finally:
        pool.clear()
        server.stop()


def test_a_proxy_and_a_certificate_are_one_too_many(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    printed = run("serve", "--data", str(tmp_path / "s"), "--behind-proxy", "10.0.0.1",
                  "--tls-cert", str(certificate), "--tls-key", str(key), code=2).stderr  # fmt: skip
    assert "one of the two" in printed


def test_people_are_let_in_and_shut_out(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "s")]

    def typed(*arguments: str, code: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "tinysphere.cli", "person", *arguments, *data],
            input="correct horse battery\n", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert result.returncode == code and "horse" not in result.stdout + result.stderr, result.stderr
        return result.stdout + result.stderr

    assert "nobody" in typed("list")
    assert "may sign in as viewer" in typed("create", "ada@example.org", "--role", "viewer")
    assert "already" in typed("create", "ada@example.org", "--role", "viewer", code=1)
    typed("password", "ada@example.org")
    typed("disable", "ada@example.org")
    assert "disabled" in typed("list")
    assert "no person" in typed("disable", "bob", code=1)
