"""What the devices have said, as a data scientist asks for it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from fleet import Sphere, device_config, enrol, make_keys, run, sphere
from kit import alarm, record, request, summary
from tinylcm.identity import load_identity
from tinylcm.wire import encode


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sphere]:
    with sphere(tmp_path) as running:
        yield running


def deliver(server: Sphere, tmp_path: Path, **changes: Any) -> str:
    """Enrol a device and have it deliver records; returns its id."""
    keys = make_keys(tmp_path / "keys")
    config = device_config(tmp_path / "device")
    enrol(config, server.join(keys / "root.pub"))
    identity = load_identity(config.data / "identity.json")
    assert identity is not None
    headers = {"Authorization": f"Bearer {identity.device_id}.{identity.secret}", "Content-Type": "application/json"}
    answer = urllib3.request("POST", f"{server.url}/api/v1/sync", body=encode(request(**changes)), headers=headers)
    assert answer.status == 200, answer.data
    return identity.device_id


def test_metrics_as_a_table_as_json_and_as_csv(server: Sphere, tmp_path: Path) -> None:
    details = [record(i, "summary", summary([100.0, 200.0], [0.5, 0.75])) for i in range(1, 4)]
    device = deliver(server, tmp_path, details=details)
    asked = ("metrics", "--step", "day", "--by", "device,version")
    environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
    shown = run(*asked, **environment).stdout.splitlines()
    assert "latency_p99_us" in shown[0] and device in shown[1] and " 6 " in shown[1]
    (point,) = json.loads(run(*asked, "--json", **environment).stdout)["points"]
    assert point["windows"] == 6 and point["confidence_mean"] == pytest.approx(0.625)
    (line,) = csv.DictReader(io.StringIO(run(*asked, "--csv", "-", **environment).stdout))
    assert (line["device"], line["windows"]) == (device, "6")
    run(*asked, "--aggregate", "windows", "--csv", str(tmp_path / "m.csv"), **environment)
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "at,device,version,windows"
    assert len(json.loads(run("metrics", "--json", **environment).stdout)["points"]) == 3
    assert "no metrics" in run("metrics", "--model", "nobody", **environment).stdout
    assert "needs a step" in run("metrics", "--by", "device", code=1, **environment).stderr
    assert "needs a step" in run("metrics", "--by", "device", "--csv", "-", code=1, **environment).stderr
    assert "no group" in run("metrics", "--group", "x", code=1, **environment).stderr


def test_usage_health_performance_logs_and_boards_are_shown(server: Sphere, tmp_path: Path) -> None:
    log = {"level": "error", "logger": "tinylcm", "message": "the disk is slow", "dropped": 3}
    details = [record(1, "summary", summary([100.0, 200.0], [0.5, 0.75])), record(2, "log", log)]
    events = [record(1, "alarm", alarm()), record(2, "label", {"prediction": 7})]
    device = deliver(server, tmp_path, details=details, events=events, boards=[{"uid": "a1", "state": "failed"}])
    environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
    shown = run("usage", "--by", "model,label", **environment).stdout.splitlines()
    assert shown[0].split() == ["model", "label", "predictions"] and shown[1].split() == ["gesture", "a", "2"]
    assert "2 predictions from" in shown[-1]
    assert run("usage", "--by", "model", "--csv", "-", **environment).stdout.splitlines()[1] == "gesture,2,0,1"
    assert "expected some of day" in run("usage", "--by", "colour", code=1, **environment).stderr
    fleet = run("health", **environment).stdout
    assert fleet.startswith("problem: 1 devices, 1 online, 1 fail a check") and device in fleet
    assert "1 records refused in the last day" in fleet and "1 boards are gone, away or failed" in fleet
    one = run("health", device, **environment).stdout
    assert "drift" in one and "warning" in one and "1 drift alarms in the last day" in one
    assert json.loads(run("health", device, "--json", **environment).stdout)["status"] == "problem"
    assert "no device" in run("health", "dnone", code=1, **environment).stderr
    table = run("performance", "gesture", **environment).stdout.splitlines()
    assert table[0].split()[:4] == ["version", "devices", "running", "windows"] and table[1].split()[:4] == [
        "1.0.0", "1", "1", "2",
    ]  # fmt: skip
    assert "no model 'none'" in run("performance", "none", code=1, **environment).stderr
    said = run("logs", "--level", "error", **environment).stdout
    assert "tinylcm: the disk is slow (and 3 lines before it that were over the limit)" in said
    assert "no device has logged" in run("logs", "--device", "dnone", **environment).stdout


def test_what_happens_is_followed(server: Sphere, tmp_path: Path) -> None:
    environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
    ready = next(server.client.follow())
    deliver(server, tmp_path, events=[record(1, "alarm", alarm())])
    asked = ("follow", "--after", str(ready["id"]), "--types", "drift", "--count", "1")
    shown = run(*asked, **environment).stdout.splitlines()
    assert len(shown) == 2 and "drift" in shown[1] and "monitor=input" in shown[1]
    lines = [json.loads(line) for line in run(*asked, "--json", **environment).stdout.splitlines()]
    assert [line["event"] for line in lines] == ["ready", "drift"] and lines[1]["body"]["signal"] == "x"
    assert "expected some of drift" in run("follow", "--types", "weather", code=1, **environment).stderr
