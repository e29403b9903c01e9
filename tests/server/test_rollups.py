"""Sums by minute, hour and day, and the newest values: as they come, exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit, record, summary
from tinylcm.wire import Anchor
from tinysphere.db import Row, rows
from tinysphere.reports import Question, query_metrics


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def stored(kit: Kit, sql: str) -> list[Row]:
    return kit.db.read(lambda connection: rows(connection, sql))


def total(kit: Kit, step: str) -> int:
    return sum(int(point.windows or 0) for point in query_metrics(kit.db, Question(step=step)).points)  # type: ignore[arg-type]


def test_a_batch_sent_twice_and_in_pieces_counts_once(kit: Kit) -> None:
    device = kit.enrol()
    details = [record(i, "summary", summary([5.0, 6.0], [0.5, 0.6])) for i in range(1, 7)]
    for batch in (details[:2], details[:4], details, details):
        kit.sync(device, details=batch)
    assert [total(kit, step) for step in ("minute", "hour", "day")] == [12, 12, 12]


def test_a_refused_summary_leaves_nothing(kit: Kit) -> None:
    device = kit.enrol()
    bad = [
        record(1, "summary", summary([5.0], [0.5], errors=-1)),
        record(2, "summary", summary([5.0], [0.5], cpu_percent=float("nan"))),
        record(3, "summary", summary([5.0], [0.5], version=7)),
    ]
    answer = kit.sync(device, details=[*bad, record(4, "summary", summary([5.0], [0.5]))])
    assert [refused.seq for refused in answer.refused] == [1, 2, 3]
    assert total(kit, "day") == 1 and len(stored(kit, "SELECT * FROM latest")) == 1


def test_the_time_is_the_records_and_never_ahead(kit: Kit) -> None:
    device = kit.enrol()
    ten_s, day_ns = 10_000_000_000, 86_400_000_000_000
    kit.sync(
        device,
        details=[
            record(1, "summary", summary([5.0], [0.5]), boot_ns=ten_s),
            record(2, "summary", summary([5.0], [0.5]), boot_ns=ten_s + 40 * day_ns),  # its clock lies
            record(3, "summary", summary([5.0], [0.5]), boot="of-a-boot-that-nobody-knows"),
        ],
    )
    at = {item["at"] for item in stored(kit, "SELECT at FROM rollup WHERE step = 60")}
    assert at == {int(NOW // 60) * 60}
    newest = stored(kit, "SELECT * FROM latest")
    assert [item["at"] for item in newest] == [NOW]


def test_latest_is_the_newest_by_its_own_time(kit: Kit) -> None:
    device = kit.enrol()

    def told(seq: int, second: int, version: str) -> dict[str, object]:
        return record(seq, "summary", summary([5.0], [0.5], version=version), boot_ns=second * 1_000_000_000)

    kit.sync(device, details=[told(1, 8, "2"), told(2, 3, "1")])
    kit.sync(device, details=[told(3, 5, "1")])
    found = stored(kit, "SELECT version, at, windows FROM latest")
    assert [(item["version"], item["at"]) for item in found] == [("2", NOW - 2)]


def test_two_models_and_versions_are_kept_apart(kit: Kit) -> None:
    device = kit.enrol()
    kinds = [("a", "1"), ("a", "2"), ("b", "1")]
    kit.sync(
        device,
        details=[
            record(i, "summary", summary([5.0], [0.5], model=model, version=version))
            for i, (model, version) in enumerate(kinds, 1)
        ],
    )
    points = query_metrics(kit.db, Question(step="day", by=("model", "version"), aggregates=("windows",))).points
    assert [(point.model, point.version, point.windows) for point in points] == [(*kind, 1) for kind in kinds]
    assert len(stored(kit, "SELECT model FROM latest")) == 2


def test_a_batch_over_many_steps_meets_what_is_stored(kit: Kit) -> None:
    device = kit.enrol()
    minute_ns = 60_000_000_000

    def batch(first: int) -> list[dict[str, object]]:
        return [record(first + i, "summary", summary([5.0], [0.5]), boot_ns=(500 - i) * minute_ns) for i in range(450)]

    kit.sync(device, details=batch(1), anchor=Anchor(500 * minute_ns, NOW))
    kit.sync(device, details=batch(451), anchor=Anchor(500 * minute_ns, NOW))
    counts = {item["windows"] for item in stored(kit, "SELECT windows FROM rollup WHERE step = 60")}
    assert counts == {2} and total(kit, "hour") == 900
