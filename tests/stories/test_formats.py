"""A device and a server, both real, in each encoding, plain and compressed: the same records arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Sphere, device_config, enrol, make_keys, sphere
from tinylcm import Device
from tinylcm.wire import CONTENT_TYPES, Format


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sphere]:
    with sphere(tmp_path_factory.mktemp("sphere")) as running:
        yield running


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_records_and_commands_travel_in_each_encoding(
    server: Sphere, tmp_path: Path, format: Format, gzip: bool
) -> None:
    config = device_config(tmp_path / "device", format=format, gzip=gzip)  # type: ignore[arg-type]
    identity = enrol(config, server.join(make_keys(tmp_path / "keys") / "root.pub"))
    command = server.client.command(f"id={identity.device_id}", "collect_status")["id"]
    with Device.open(config, background=False) as device:
        for n in range(500):
            device.journal.append("details", "note", {"n": n, "big": 2**60 + n, "x": n / 3, "deep": [{"é": None}]})
        device.journal.flush()
        device.sync()
        assert device.agent.sync.plain_until_s < 0  # the server took the format
        assert device.journal.stats().details.unacknowledged == 0
    answer = server.client.command_state(command)["devices"][0]  # type: ignore[index]
    assert answer["state"] == "done" and answer["result"]["journal"]["details"]["dropped"] == 0
