"""What is wrong in the fleet, and with a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, Web, alarm, make_kit, make_web, record, summary
from tinylcm.wire import Anchor
from tinysphere import commands, health, lifecycle, settings
from tinysphere.errors import NotFoundError
from tinysphere.health import CHECKS, DAY_S, device_health, fleet_health

NAMES = {check.name for check in CHECKS}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def failing(kit: Kit, device: str, now_s: float = NOW) -> dict[str, str]:
    """The checks that a device fails, and what they say; the fleet's must say the same."""
    found = device_health(kit.db, device, now_s)
    assert {check.check for check in found.checks} == NAMES
    wrong = {check.check: check.detail for check in found.checks if check.level != "ok"}
    fleet = fleet_health(kit.db, 500, now_s)
    named = {
        check.check: trouble.detail for check in fleet.checks for trouble in check.named if trouble.device_id == device
    }
    assert named == wrong
    assert (fleet.status == "ok") == (fleet.failing == 0)
    return wrong


def test_a_device_that_works_is_well(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, details=[record(1, "summary", summary([100.0], [0.5]))])
    assert failing(kit, device) == {}
    found = device_health(kit.db, device, NOW)
    assert found.status == "ok" and found.last_seen_at == NOW
    assert [(model.model, model.version, model.windows) for model in found.models] == [("gesture", "1.0.0", 1)]
    fleet = fleet_health(kit.db, 20, NOW)
    assert (fleet.status, fleet.devices, fleet.online, fleet.never_seen, fleet.failing) == ("ok", 1, 1, 0, 0)
    assert [(item.version, item.devices) for item in fleet.versions] == [("1.0.0", 1)]
    with pytest.raises(NotFoundError, match="no device"):
        device_health(kit.db, "dnone", NOW)


def test_a_device_that_stays_away_is_a_warning_and_then_a_problem(kit: Kit) -> None:
    device, new = kit.enrol(), kit.enrol("new", "22" * 32)
    kit.sync(device)
    assert failing(kit, device, NOW + 89) == {}
    assert failing(kit, device, NOW + 100) == {"away": "last seen 100 s ago"}
    assert failing(kit, device, NOW + DAY_S) == {"silent": "last seen 24 hours ago"}
    assert device_health(kit.db, device, NOW + DAY_S).status == "problem"
    assert failing(kit, new, NOW + DAY_S) == {"silent": "never seen"}
    fleet = fleet_health(kit.db, 1, NOW + DAY_S)
    silent = next(check for check in fleet.checks if check.check == "silent")
    assert (silent.devices, len(silent.named), fleet.failing, fleet.never_seen, fleet.online) == (2, 1, 2, 1, 0)


def test_each_check_finds_its_device_and_only_that(kit: Kit) -> None:
    well, ill = kit.enrol(), kit.enrol("ill", "22" * 32)
    kit.sync(well, anchor=Anchor(10_000_000_000, NOW))
    kit.upload()
    kit.deploy(selector="name=ill")
    events = [
        record(1, "alarm", alarm()),
        record(2, "deployment", {"deployment": 1, "model": "gesture", "version": "1.0.0", "sha256": "0" * 64,
                                 "state": "rolled_back", "reason": "too slow"}),
        record(3, "config_result", {"version": 3, "state": "refused", "reason": "no such key"}),
        record(5, "label", {"prediction": 7}),
    ]  # fmt: skip
    details = [record(1, "summary", summary([1.0] * 50, [0.5] * 50, errors=1))]
    kit.sync(ill, anchor=Anchor(10_000_000_000, NOW - 400), events=events, details=details)
    request = commands.CommandRequest("name=ill", "ping")
    made = kit.db.write(lambda connection: commands.create_in(connection, request, "test", NOW))
    answer = {"command": made.id, "name": "ping", "state": "failed", "detail": "no", "result": None}
    kit.sync(ill, anchor=Anchor(10_000_000_000, NOW - 400), events=[record(6, "command_result", answer)])
    assert failing(kit, ill) == {
        "clock": "7 minutes behind",
        "lost": "1 records lost in the last day",
        "refused": "1 records refused in the last day",
        "errors": "1 of 50 windows failed",
        "drift": "1 drift alarms in the last day",
        "deployment": "1 deployments: too slow",
        "config": "version 3 was refused: no such key",
        "commands": "1 commands failed in the last day",
    }
    assert failing(kit, well) == {}
    lifecycle.revoke(kit.db, ill, "test", NOW)
    assert failing(kit, ill)["revoked"] == "revoked 0 s ago"
    lifecycle.retire(kit.db, ill, "test", NOW)
    assert fleet_health(kit.db, 20, NOW).status == "ok"
    # What was a day ago is over; what a device is still in is not.
    assert {"lost", "refused", "drift", "commands"} & failing_names(kit, ill, NOW + DAY_S + 1) == set()


def failing_names(kit: Kit, device: str, now_s: float) -> set[str]:
    return {check.check for check in device_health(kit.db, device, now_s).checks if check.level != "ok"}


def test_a_later_deployment_of_the_model_ends_the_trouble(kit: Kit) -> None:
    device = kit.enrol()
    kit.upload()
    kit.deploy()
    step = {"deployment": 1, "model": "gesture", "version": "1.0.0", "sha256": "0" * 64, "reason": "x"}
    kit.sync(device, events=[record(1, "deployment", {**step, "state": "refused"})])
    assert set(failing(kit, device)) == {"deployment"}
    kit.deploy()
    kit.sync(device, events=[record(2, "deployment", {**step, "deployment": 2, "state": "confirmed"})])
    assert failing(kit, device) == {}


def test_merged_summaries_and_other_settings_are_no_trouble(kit: Kit) -> None:
    device = kit.enrol()
    gap = {"epoch": "00000000000000aa", "from_seq": 1, "to_seq": 2, "count": 2, "reason": "merged"}
    kit.sync(device, details=[record(3, "gap", gap)])
    kit.sync(device, events=[record(1, "config_result", {"version": 1, "state": "applied", "reason": ""})])
    assert failing(kit, device) == {}
    assert settings.STATES == ("applied", "refused", "rolled_back")


def test_health_over_http(tmp_path: Path) -> None:
    web: Web = make_web(tmp_path)
    with web.client:
        device, key = web.enrol()
        viewer = web.bearer(web.kit.token("viewer"))
        fleet = web.client.get("/api/v1/health/fleet", headers=viewer).json()
        assert fleet["devices"] == 1 and {check["check"] for check in fleet["checks"]} == NAMES
        assert web.client.get(f"/api/v1/health/devices/{device}", headers=viewer).json()["status"] == "ok"
        assert web.client.get("/api/v1/health/devices/dnone", headers=viewer).status_code == 404
        assert web.client.get("/api/v1/health/fleet", headers=key).status_code == 403
        assert web.client.get("/api/v1/health/fleet?limit=0", headers=viewer).status_code == 400
    assert health.CLOCK_OFFSET_S_MAX == 300
