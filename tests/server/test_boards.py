"""The boards behind a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import device_config, make_keys, sphere
from kit import NOW, Kit, Web, make_kit, make_web
from tinylcm.device import Device, enrol
from tinylcm.wire import Board
from tinysphere import boards, fleet
from tinysphere.boards import BOARDS_MAX, BoardView
from tinysphere.feed import Wanted, after, begin


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def board(uid: str, **changes: object) -> dict[str, object]:
    return {
        "uid": uid, "name": f"board {uid}", "fw": "1.2.0", "model": "gesture", "model_version": "1.0.0",
        "state": "online", "last_seen_ms": 1500, "info": {"retries": 3}, **changes,
    }  # fmt: skip


def shown(kit: Kit, device: str) -> list[BoardView]:
    return fleet.get_device(kit.db, device, kit.clock.wall_s()).boards


def test_a_device_shows_its_boards_as_it_reported_them_last(kit: Kit) -> None:
    device, other = kit.enrol(), kit.enrol("other", "22" * 32)
    kit.sync(device, boards=[board("b2"), board("a1", last_seen_ms=None)])
    first, second = shown(kit, device)
    assert (first.uid, first.last_seen_at, first.info) == ("a1", None, {"retries": 3})
    assert (second.uid, second.last_seen_at, second.fw, second.gone_at) == ("b2", NOW - 1.5, "1.2.0", None)
    assert shown(kit, other) == []
    kit.clock.advance(60)
    kit.sync(device, boards=[board("a1", state="updating", fw="1.3.0")])
    first, second = shown(kit, device)
    assert (first.state, first.fw, first.last_seen_at, first.first_seen_at) == ("updating", "1.3.0", NOW + 58.5, NOW)
    assert second.gone_at == NOW + 60 and second.last_seen_at == NOW - 1.5
    kit.sync(device, boards=[board("b2")])
    assert [item.gone_at is None for item in shown(kit, device)] == [False, True]
    kit.sync(device)
    assert all(item.gone_at is not None for item in shown(kit, device))
    page = fleet.list_devices(kit.db, None, 10, NOW).items
    assert {item.id: len(item.boards) for item in page} == {device: 2, other: 0}


def test_a_board_that_cannot_be_read_costs_itself(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    device = kit.enrol()
    wrong: list[object] = [
        7, {}, board(""), board("a b"), board("x" * 65), board("c", fw=1), board("d", last_seen_ms=-1),
        board("e", info={"long": "x" * 5000}), board("f", info=[]), board("g", name="x" * 201),
    ]  # fmt: skip
    kit.sync(device, boards=[*wrong, {"uid": "good"}, board("good", fw="second of its name")])
    assert [(item.uid, item.fw) for item in shown(kit, device)] == [("good", "")]
    assert len([line for line in caplog.messages if "is left out" in line]) == len(wrong)


def test_there_are_no_more_boards_than_are_kept(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, boards=[board(f"old{i}") for i in range(BOARDS_MAX + 2)])
    assert len(shown(kit, device)) == BOARDS_MAX
    kit.clock.advance(1)
    kit.sync(device, boards=[board(f"new{i}") for i in range(3)])
    found = shown(kit, device)
    assert len(found) == BOARDS_MAX and sum(item.gone_at is None for item in found) == 3


def test_followers_hear_of_what_is_new_and_of_nothing_else(kit: Kit) -> None:
    device = kit.enrol()
    cursor, _ = begin(kit.db, None, None, NOW)
    for state in ("online", "online", "away"):
        kit.sync(device, boards=[board("a1", state=state, last_seen_ms=len(state))])
    kit.sync(device)
    kit.sync(device)
    events, _, _ = after(kit.db, cursor, Wanted(frozenset({"board"})))
    assert [event.body["state"] for _, event in events] == ["online", "away", "gone"]
    assert events[0][1].device == device and events[0][1].body["uid"] == "a1"


def test_boards_over_http(tmp_path: Path) -> None:
    web: Web = make_web(tmp_path)
    with web.client:
        device, key = web.enrol()
        viewer = web.bearer(web.kit.token("viewer"))
        body = web.sync_body(boards=[board("a1", state="failed")])
        headers = {**key, "Content-Type": "application/json"}
        assert web.client.post("/api/v1/sync", content=body, headers=headers).status_code == 200
        found = web.client.get(f"/api/v1/devices/{device}", headers=viewer).json()
        assert found["boards"][0]["uid"] == "a1" and found["boards"][0]["state"] == "failed"
        health = web.client.get(f"/api/v1/health/devices/{device}", headers=viewer).json()
        wrong = {check["check"]: check["detail"] for check in health["checks"] if check["level"] != "ok"}
        assert wrong == {"boards": "1 boards are gone, away or failed"}
        assert "failed" in boards.DOWN
        page = web.client.get(f"/devices/{device}", headers=viewer)
        assert page.status_code in (200, 303)


@pytest.mark.parametrize("format", ["json", "msgpack", "protobuf"])
def test_a_gateway_reports_its_boards_in_each_encoding(tmp_path: Path, format: str) -> None:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        config = device_config(tmp_path / "device", format=format)  # type: ignore[arg-type]
        name = enrol(config, server.join(keys / "root.pub")).device_id
        with Device.open(config, background=False) as device:
            device.agent.boards = lambda: [
                Board("a1", "left", "1.2.0", "gesture", "1.0.0", "online", 20, {"frames": 1 << 40, "rate": 0.5}),
                Board("b2"),
            ]
            device.agent.sync_now()
            found = server.client.device(name)["boards"]
            assert isinstance(found, list) and [item["uid"] for item in found] == ["a1", "b2"]
            assert found[0]["info"] == {"frames": 1 << 40, "rate": 0.5} and found[1]["last_seen_at"] is None
            device.agent.boards = list
            device.agent.sync_now()
            gone = server.client.device(name)["boards"]
            assert isinstance(gone, list) and all(item["gone_at"] for item in gone)
