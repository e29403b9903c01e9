"""Metrics over time."""

from __future__ import annotations

from pathlib import Path

from kit import NOW, make_kit, record, summary
from tinysphere import reports


def test_points_come_oldest_first_within_bounds(tmp_path: Path) -> None:
    kit = make_kit(tmp_path)
    device = kit.enrol()
    details = [
        record(i, "summary", summary([float(i)], [0.5]), boot_ns=i * 1_000_000_000) for i in range(1, 6)
    ]  # fmt: skip
    kit.sync(device, details=[*details, record(6, "summary", summary([9.0], [0.1], model="other"))])
    points = reports.query_metrics(kit.db, device, "gesture", None, 3).points
    assert [point.at for point in points] == [NOW - 7, NOW - 6, NOW - 5]
    assert len(reports.query_metrics(kit.db, None, None, None, 100).points) == 6
    assert [point.at for point in reports.query_metrics(kit.db, None, "gesture", NOW - 5.5, 100).points] == [NOW - 5]
    assert reports.query_metrics(kit.db, "dnone", None, None, 10).points == []
    kit.db.close()
