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
from kit import record, request, summary
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
