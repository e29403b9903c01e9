"""What devices have logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import device_config, make_keys, sphere
from kit import NOW, Kit, Web, make_kit, make_web, record
from tinylcm.device import Device, enrol
from tinysphere import logs
from tinysphere.errors import BadRequestError
from tinysphere.logs import Question, list_logs


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def line(seq: int, message: str = "it is so", level: str = "warning", **changes: object) -> dict[str, object]:
    payload = {"level": level, "logger": "tinylcm", "message": message, **changes}
    return record(seq, "log", payload, boot_ns=seq * 1_000_000_000)


def messages(kit: Kit, **asked: object) -> list[str]:
    return [item.message for item in list_logs(kit.db, Question(**asked), None, 50).items]  # type: ignore[arg-type]


def test_lines_are_kept_and_found(kit: Kit) -> None:
    one, two = kit.enrol(), kit.enrol("other", "22" * 32)
    kit.sync(one, details=[line(1, "a", "debug"), line(2, "b"), line(3, "c", "error", logger="tinylcm.app", dropped=7)])
    kit.clock.advance(10)
    kit.sync(two, details=[{**line(1, "d", "critical"), "boot": "never anchored"}])
    assert messages(kit) == ["d", "c", "b", "a"]
    assert messages(kit, device=one) == ["c", "b", "a"]
    assert messages(kit, level="error") == ["d", "c"]
    assert messages(kit, logger="tinylcm.app") == ["c"]
    assert messages(kit, since=NOW + 5) == ["d"] and messages(kit, until=NOW + 5) == ["c", "b", "a"]
    found = list_logs(kit.db, Question(), None, 2)
    assert (found.items[0].at, found.items[0].device_name) == (None, "other")
    assert (found.items[1].at, found.items[1].dropped, found.items[1].level) == (NOW - 7, 7, "error")
    assert [item.message for item in list_logs(kit.db, Question(), found.next, 2).items] == ["b", "a"]


def test_what_is_no_line_is_refused_by_name_and_costs_nothing_else(kit: Kit) -> None:
    device = kit.enrol()
    wrong = [
        line(1, level="loud"), record(2, "log", {"level": "info"}), line(3, dropped=-1), line(4, logger=7),
        line(5, "kept"),
    ]  # fmt: skip
    answer = kit.sync(device, details=wrong)
    assert [item.seq for item in answer.refused] == [1, 2, 3, 4] and "'loud'" in answer.refused[0].reason
    assert messages(kit) == ["kept"]
    with pytest.raises(BadRequestError, match="expected one of debug"):
        list_logs(kit.db, Question(level="loud"), None, 5)


def test_one_sync_brings_no_more_lines_than_are_kept(kit: Kit) -> None:
    device = kit.enrol()
    answer = kit.sync(device, details=[line(i, "x" * 5000) for i in range(1, logs.A_SYNC_MAX + 3)])
    assert [item.seq for item in answer.refused] == [logs.A_SYNC_MAX + 1, logs.A_SYNC_MAX + 2]
    assert "more than 500 lines" in answer.refused[0].reason
    newest = list_logs(kit.db, Question(), None, 1).items[0]
    assert len(newest.message) == logs.MESSAGE_CHARACTERS_MAX


def test_logs_over_http(tmp_path: Path) -> None:
    web: Web = make_web(tmp_path)
    with web.client:
        device, key = web.enrol()
        web.kit.sync(device, details=[line(1, "a"), line(2, "b")])
        viewer = web.bearer(web.kit.token("viewer"))
        answer = web.client.get(f"/api/v1/logs?device={device}&level=info&limit=1", headers=viewer)
        assert [item["message"] for item in answer.json()["items"]] == ["b"]
        following = answer.headers["link"].split(">")[0].removeprefix("<")
        assert [item["message"] for item in web.client.get(following, headers=viewer).json()["items"]] == ["a"]
        assert web.client.get("/api/v1/logs?level=loud", headers=viewer).status_code == 400
        assert web.client.get("/api/v1/logs", headers=key).status_code == 403


def test_a_device_sends_its_log_and_a_command_changes_its_level(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        config = device_config(tmp_path / "device")
        enrol(config, server.join(keys / "root.pub"))
        log = logging.getLogger("tinylcm.app")
        with Device.open(config, background=False) as device:
            log.info("not this")
            log.warning("the sensor is warm: key %s", "ts_0a1b2c3d_" + "s" * 43)
            device.agent.tick()
            device.journal.flush()
            device.agent.sync_now()
            server.client.command("all", "log_level", {"level": "info", "for_s": 60})
            device.agent.sync_now()
            log.info("but this")
            device.agent.tick()
            device.journal.flush()
            device.agent.sync_now()
        said = [item["message"] for item in server.client.logs(level="info") if item["logger"] == "tinylcm.app"]
        assert said == ["but this", "the sensor is warm: key ***"]
