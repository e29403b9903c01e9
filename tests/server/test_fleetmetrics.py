"""Hours of a version, as MLflow is to have them: each once, those that change again, and never more than may wait."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import Kit, alarm, make_kit, record, summary
from tinylcm.wire import Anchor
from tinysphere import fleetmetrics, outbox
from tinysphere.db import rows
from tinysphere.fleetmetrics import DAY_S, HOUR_S, Made

BOOT_NS = 10_000_000_000
SEQ = iter(range(1, 1_000_000))


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    kit.clock.jump_wall(DAY_S * 20_000 - kit.clock.wall_s())  # midnight
    kit.upload()
    yield kit
    kit.db.close()


@pytest.fixture
def device(kit: Kit) -> str:
    return kit.enrol()


def told(kit: Kit, device: str, latency: list[float], ago_s: float = 0.0, **changes: object) -> None:
    """A device tells a summary of some time ago."""
    kit.sync(
        device,
        anchor=Anchor(BOOT_NS + int(ago_s * 1e9), kit.clock.wall_s()),
        details=[
            record(next(SEQ), "summary", summary(latency, [0.5] * len(latency), **changes), boot_ns=BOOT_NS)
        ],
    )  # fmt: skip


def look(kit: Kit, waiting_max: int = fleetmetrics.WAITING_MAX) -> bool:
    return fleetmetrics.note(kit.db.write, kit.clock.wall_s(), waiting_max)


def made(kit: Kit, limit: int = 100) -> list[Made]:
    """What would be sent now, written down."""
    now_s = kit.clock.wall_s()
    found, _ = kit.db.read(lambda connection: fleetmetrics.make(connection, "gesture", "1.0.0", now_s, limit))
    return kit.db.write(lambda connection: fleetmetrics.take(connection, "gesture", "1.0.0", found))


def settle(kit: Kit, points: list[Made]) -> None:
    kit.db.write(lambda connection: fleetmetrics.settle(connection, "gesture", "1.0.0", points))


def waiting(kit: Kit) -> int:
    return kit.db.read(fleetmetrics.count_waiting)


def test_an_hour_is_sent_when_it_is_over(kit: Kit, device: str) -> None:
    begin = int(kit.clock.wall_s())
    kit.clock.advance(600)
    told(kit, device, [100.0, 300.0], labels={"a b/c": 2})
    told(kit, kit.enrol("other", "22" * 32), [200.0])
    kit.sync(device, events=[record(next(SEQ), "alarm", alarm())])
    assert look(kit) and waiting(kit) == 0, "what came just now may still be in a transaction"
    kit.clock.advance(200)
    assert look(kit) and made(kit) == [], "the hour is not over"
    due = kit.db.read(lambda connection: rows(connection, "SELECT retry_at FROM outbox WHERE kind = 'metrics'"))
    assert due[0]["retry_at"] == begin + HOUR_S + fleetmetrics.OPEN_S
    kit.clock.advance(HOUR_S)
    (point,) = made(kit)
    assert (point.at, point.span_s, point.stamp_ms) == (begin, HOUR_S, (begin + HOUR_S) * 1000)
    values = point.values
    assert values["windows"] == 3 and values["devices"] == 2 and values["drift_events"] == 1
    assert values["latency_mean_us"] == pytest.approx(200.0) and values["latency_max_us"] == 300.0
    assert values["latency_p50_us"] == pytest.approx(200.0, rel=0.02) and values["confidence_mean"] == 0.5
    assert values["predictions/a b_c"] == 2 and "accuracy" not in values
    settle(kit, [point])
    assert made(kit) == [] and waiting(kit) == 0


def test_what_was_not_settled_is_sent_again_exactly_so(kit: Kit, device: str) -> None:
    told(kit, device, [100.0])
    kit.clock.advance(2 * HOUR_S)
    look(kit)
    first = made(kit)
    told(kit, device, [900.0], ago_s=2 * HOUR_S)  # of the same hour
    kit.clock.advance(300)
    look(kit)
    assert made(kit) == first, "its answer was lost: MLflow may have it"
    settle(kit, first)
    (point,) = made(kit)
    assert point.values["windows"] == 2 and point.stamp_ms > first[0].stamp_ms and point.at == first[0].at
    settle(kit, [point])
    assert waiting(kit) == 0
    told(kit, device, [900.0], ago_s=2 * HOUR_S)
    kit.clock.advance(300)
    look(kit)
    assert made(kit) == [] and waiting(kit) == 1, "at most once an hour"
    kit.clock.advance(HOUR_S)
    assert len(made(kit)) == 1


def test_a_device_that_was_away_changes_its_hours_and_no_others(kit: Kit, device: str) -> None:
    for _ in range(3):
        told(kit, device, [100.0])
        kit.clock.advance(HOUR_S)
    kit.clock.advance(HOUR_S)
    look(kit)
    points = made(kit)
    assert len(points) == 3
    settle(kit, points)
    kit.clock.advance(HOUR_S)
    told(kit, kit.enrol("late", "22" * 32), [500.0], ago_s=4.5 * HOUR_S)  # into the first hour
    kit.clock.advance(HOUR_S)
    look(kit)
    (again,) = made(kit)
    assert again.at == points[0].at and again.values["windows"] == 2 and again.values["devices"] == 2


def test_a_mark_that_changes_nothing_sends_nothing(kit: Kit, device: str) -> None:
    told(kit, device, [100.0])
    kit.clock.advance(2 * HOUR_S)
    look(kit)
    points = made(kit)
    settle(kit, points)
    kit.clock.advance(2 * HOUR_S)
    at = points[0].at
    kit.db.write(lambda connection: fleetmetrics.mark(connection, "gesture", "1.0.0", [at], kit.clock.wall_s()))
    assert waiting(kit) == 1 and made(kit) == [] and waiting(kit) == 0


def test_accuracy_comes_with_the_labels(kit: Kit, device: str) -> None:
    body = {"prediction": "p-1", "model": "gesture", "version": "1.0.0", "label": "a"}
    kit.sync(device, anchor=Anchor(BOOT_NS, kit.clock.wall_s()), details=[record(1, "sample", body, boot_ns=BOOT_NS)])
    kit.clock.advance(2 * HOUR_S)
    kit.sync(
        device,
        anchor=Anchor(BOOT_NS + int(2e9 * HOUR_S), kit.clock.wall_s()),
        events=[record(1, "label", {"prediction": "p-1", "label": "b"})],
    )
    kit.clock.advance(HOUR_S)
    look(kit)
    found = {point.at: point.values for point in made(kit)}
    assert found[DAY_S * 20_000] | {} == {**found[DAY_S * 20_000], "labelled": 1.0, "accuracy": 0.0}


def test_only_versions_of_this_server_have_points(kit: Kit, device: str) -> None:
    told(kit, device, [1.0], version="6.6.6")
    kit.sync(device, details=[record(next(SEQ), "summary", summary([1.0], [0.5], model="theirs"))])
    kit.clock.advance(2 * HOUR_S)
    assert look(kit) and waiting(kit) == 0


def test_every_row_is_looked_at_once_however_many_have_one_time(
    kit: Kit, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleetmetrics, "_PIECE", 2)
    for number in range(7):
        told(kit, device, [1.0], ago_s=HOUR_S * number)
    kit.clock.advance(2 * HOUR_S)
    assert look(kit) and waiting(kit) == 7
    marks = kit.db.read(lambda connection: rows(connection, "SELECT marks FROM fleet_point"))
    assert {item["marks"] for item in marks} == {1}
    look(kit)
    assert kit.db.read(lambda connection: rows(connection, "SELECT marks FROM fleet_point")) == marks


def test_when_many_wait_the_hours_of_a_day_become_one_and_nothing_is_lost(kit: Kit, device: str) -> None:
    for _ in range(30):  # 24 hours of one day, 6 of the next
        told(kit, device, [100.0])
        kit.clock.advance(HOUR_S)
        assert look(kit, waiting_max=8)
        assert waiting(kit) <= 8 + 1
    kit.clock.advance(2 * HOUR_S)
    assert look(kit, waiting_max=8)
    points = made(kit)
    assert sum(point.values["windows"] for point in points) == 30
    ends = [(point.at, point.at + point.span_s) for point in points]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends)), "no hour is in two"
    assert max(point.span_s for point in points) > HOUR_S and max(point.span_s for point in points) <= DAY_S
    settle(kit, points)
    told(kit, device, [100.0], ago_s=25 * HOUR_S)  # of an hour that is within a longer point
    kit.clock.advance(2 * HOUR_S)
    look(kit)
    (again,) = made(kit)
    assert (
        again.span_s > HOUR_S and again.values["windows"] == {p.at: p for p in points}[again.at].values["windows"] + 1
    )


def test_when_nothing_can_be_joined_what_comes_waits_in_the_tables(kit: Kit, device: str) -> None:
    for _ in range(4):  # one hour a day
        told(kit, device, [100.0])
        kit.clock.advance(DAY_S)
        look(kit, waiting_max=2)
    assert not look(kit, waiting_max=2) and waiting(kit) == 2
    settle(kit, made(kit))
    assert look(kit, waiting_max=2) and waiting(kit) == 2
    assert [point.values["windows"] for point in made(kit)] == [1, 1]


def test_all_can_be_sent_again_as_it_was(kit: Kit, device: str) -> None:
    told(kit, device, [100.0])
    kit.clock.advance(2 * HOUR_S)
    look(kit)
    first = made(kit)
    settle(kit, first)
    kit.db.write(lambda connection: connection.execute("DELETE FROM outbox"))
    kit.db.write(lambda connection: fleetmetrics.send_again(connection, kit.clock.wall_s()))
    assert made(kit) == first
    (item,) = kit.db.read(lambda connection: outbox.due(connection, "metrics", kit.clock.wall_s(), 9))
    assert item.name == "1.0.0"
