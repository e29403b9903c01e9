"""Simulated devices are devices: they enrol, check in, bring again what was not acknowledged, and are measured."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fleet import Sphere, make_keys, run, run_cli, sphere
from tinylcm.errors import ConfigError
from tinysphere.simulate import DEVICES_MAX, Plan, Result, token_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sphere]:
    with sphere(tmp_path_factory.mktemp("sphere")) as running:
        yield running


@pytest.fixture(scope="module")
def join(server: Sphere, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.join(make_keys(tmp_path_factory.mktemp("keys")) / "root.pub", uses=60)


def count(server: Sphere, sql: str) -> int:
    with closing(sqlite3.connect(server.data / "tinysphere.db")) as connection:
        return int(connection.execute(sql).fetchone()[0])


@pytest.mark.parametrize("extra", [[], ["--new-connections", "--format", "json"], ["--format", "protobuf"]])
def test_devices_enrol_and_check_in_and_every_record_is_stored(server: Sphere, join: str, extra: list[str]) -> None:
    before = count(server, "SELECT COUNT(*) FROM record")
    found = run_cli(
        "tinysphere.cli", "simulate", "--url", server.url, "--join", join, "--devices", "10", "--interval-s", "0.5",
        "--for-s", "2", "--records", "2", *extra,
    )  # fmt: skip
    assert (found["errors"], found["enrolled"]) == (0, 10), found
    assert 20 <= found["check_ins"] <= 40 and found["records"] == 2 * found["check_ins"]
    assert 0.0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert count(server, "SELECT COUNT(*) FROM record") - before == found["records"]
    assert count(server, "SELECT COUNT(*) FROM gap") == count(server, "SELECT COUNT(*) FROM refused_record") == 0


def test_keys_are_kept_and_used_again(server: Sphere, join: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    options = ["simulate", "--url", server.url, "--keys", str(keys), "--devices", "5", "--interval-s", "0.3"]
    assert run_cli("tinysphere.cli", *options, "--join", join, "--for-s", "0.6")["enrolled"] == 5
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600 and len(json.loads(keys.read_text())) == 5
    again = run_cli("tinysphere.cli", *options, "--for-s", "0.6")
    assert again["enrolled"] == 0 and again["check_ins"] >= 5 and again["errors"] == 0
    shown = run("simulate", *options[1:], "--for-s", "0.4").stdout
    assert "p99" in shown and "5 devices" in shown


@pytest.mark.long
def test_a_server_that_is_killed_is_counted_and_what_it_lost_is_brought_again(
    join: str, server: Sphere, tmp_path: Path
) -> None:
    import subprocess
    import sys
    import time

    before = count(server, "SELECT COUNT(*) FROM record")
    process = subprocess.Popen(
        [sys.executable, "-m", "tinysphere.cli", "simulate", "--url", server.url, "--join", join, "--devices", "10",
         "--interval-s", "0.2", "--for-s", "8", "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while count(server, "SELECT COUNT(*) FROM record") == before and time.monotonic() < deadline:
        time.sleep(0.05)
    server.kill()
    server.start()
    output, _ = process.communicate(timeout=60)
    found = json.loads(output)
    assert found["errors"] > 0 and all(name.startswith("connection") for name in found["problems"]), found
    assert found["resent"] > 0
    stored = count(server, "SELECT COUNT(*) FROM record") - before
    assert found["records"] <= stored <= found["records"] + 10  # of each device the last may have come too late to tell
    assert count(server, "SELECT COUNT(*) FROM gap") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "http://192.0.2.1", "--join", "tj_a_b"], "--insecure"),
        (["--url", "ftp://127.0.0.1", "--join", "tj_a_b"], "no http"),
        (["--url", "http://127.0.0.1:1", "--join", "x"], "neither a join string"),
        (["--url", "http://127.0.0.1:1"], "--join is needed"),
        (["--url", "http://127.0.0.1:1", "--join", "tj_a_b", "--devices", str(DEVICES_MAX + 1)], "--devices"),
        (["--url", "http://127.0.0.1:1", "--join", "tj_a_b", "--interval-s", "nan"], "--interval-s"),
        (["--url", "http://127.0.0.1:1", "--join", "tj_a_b", "--format", "xml"], "xml"),
    ],
)
def test_what_cannot_be_simulated_is_said_so(options: list[str], message: str) -> None:
    assert message in run("simulate", *options, code=2).stderr


def test_a_token_that_is_used_up_and_a_server_that_is_not_there_are_errors(server: Sphere) -> None:
    wrong = run("simulate", "--url", server.url, "--join", "tj_12345678_x", "--devices", "1", code=1).stderr
    assert "join token is not known" in wrong
    assert "cannot be reached" in run("simulate", "--url", "http://127.0.0.1:9", "--join", "tj_a_b", code=1).stderr


def test_join_strings_and_percentiles() -> None:
    assert token_of("tinysphere+http://x/join#token=tj_a_b&root=sha256:1") == token_of("tj_a_b") == "tj_a_b"
    result = Result(times_s=[0.001 * number for number in range(1, 101)], took_s=10.0)
    found = result.document(Plan("http://127.0.0.1", "tj_a_b"))
    assert (found["p50_ms"], found["p95_ms"], found["p99_ms"], found["max_ms"]) == (50, 95, 99, 100)
    with pytest.raises(ConfigError):
        Plan("http://127.0.0.1", "tj_a_b", devices=100_000, interval_s=0.1, for_s=86_400)
