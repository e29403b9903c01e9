"""Metrics over time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import NOW, Kit, make_kit, record, summary
from tinysphere import groups, reports
from tinysphere.errors import BadRequestError, InvalidError, NotFoundError
from tinysphere.reports import Metrics, MetricsPoint, Question, as_csv, query_metrics

HOUR = NOW // 3600 * 3600


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


@pytest.fixture
def fleet(kit: Kit) -> list[str]:
    """Two devices with five summaries each, a second apart; the second device runs another version."""
    devices = [kit.enrol("one", "11" * 32), kit.enrol("two", "22" * 32)]
    for number, device in enumerate(devices):
        details = [
            record(i, "summary", summary([100.0 * i], [0.5], version=f"{number + 1}.0"), boot_ns=i * 1_000_000_000)
            for i in range(1, 6)
        ]
        kit.sync(device, details=details)
    return devices


def test_points_come_oldest_first_within_bounds(kit: Kit) -> None:
    device = kit.enrol()
    details = [
        record(i, "summary", summary([float(i)], [0.5]), boot_ns=i * 1_000_000_000) for i in range(1, 6)
    ]  # fmt: skip
    kit.sync(device, details=[*details, record(6, "summary", summary([9.0], [0.1], model="other"))])

    def at(**asked: object) -> list[float]:
        return [point.at for point in query_metrics(kit.db, Question(**asked)).points]  # type: ignore[arg-type]

    assert at(device=device, model="gesture", limit=3) == [NOW - 7, NOW - 6, NOW - 5]
    assert len(at()) == 6
    assert at(model="gesture", since=NOW - 5.5) == [NOW - 5]
    assert at(model="gesture", until=NOW - 8.5) == [NOW - 9]
    assert at(device="dnone") == []


@pytest.mark.parametrize("step", ["minute", "hour", "day"])
def test_a_step_adds_up_what_the_devices_said(kit: Kit, fleet: list[str], step: str) -> None:
    metrics = query_metrics(kit.db, Question(step=step))
    assert metrics.step_s == {"minute": 60, "hour": 3600, "day": 86_400}[step]
    assert sum(point.windows for point in metrics.points) == 10  # type: ignore[misc]
    newest = metrics.points[-1]
    if step == "day":
        assert newest.latency_mean_us == pytest.approx(300) and newest.latency_max_us == 500
        assert newest.latency_p50_us == pytest.approx(300, rel=0.0102)
        assert newest.labels == {"a": 10} and newest.dropped_samples == 10 and newest.rss_bytes == 1000
        assert newest.cpu_percent == pytest.approx(1.5) and newest.confidence_std == pytest.approx(0)


def test_a_question_is_narrowed_and_taken_apart(kit: Kit, fleet: list[str]) -> None:
    groups.put(kit.db, "first", groups.GroupRequest("name=one"), "test", NOW)

    def asked(**question: object) -> list[tuple[object, ...]]:
        points = query_metrics(kit.db, Question(step="day", aggregates=("windows",), **question)).points  # type: ignore[arg-type]
        return [(point.device, point.version, point.windows) for point in points]

    import msgspec

    none = msgspec.UNSET
    assert asked() == [(none, none, 10)]
    assert asked(by=("device",)) == [(device, none, 5) for device in sorted(fleet)]
    assert asked(by=("version",)) == [(none, "1.0", 5), (none, "2.0", 5)]
    assert asked(group="first", by=("device",)) == [(fleet[0], none, 5)]
    assert asked(group="first", device=fleet[1]) == []
    assert asked(version="2.0") == [(none, none, 5)]
    assert asked(model="nobody") == [] == asked(until=1.0)


def test_what_cannot_be_answered_is_said(kit: Kit, fleet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for question, error, says in (
        (Question(step="week"), BadRequestError, "minute, hour, day"),
        (Question(step="day", by=("site",)), BadRequestError, "device, model, version"),
        (Question(by=("device",)), BadRequestError, "needs a step"),
        (Question(aggregates=("p42",)), BadRequestError, "latency_p99_us"),
        (Question(group="nobody"), NotFoundError, "no group"),
    ):
        with pytest.raises(error, match=says):
            query_metrics(kit.db, question)
    monkeypatch.setattr(reports, "ROWS_MAX", 1)
    with pytest.raises(InvalidError, match="longer step"):
        query_metrics(kit.db, Question(step="day"))


def test_many_rows_are_read_in_pages(kit: Kit, fleet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = query_metrics(kit.db, Question(step="minute", by=("device", "version")))
    monkeypatch.setattr(reports, "_ROWS_A_PAGE", 1)
    monkeypatch.setattr(reports, "_DEVICES_A_QUERY", 1)
    groups.put(kit.db, "everyone", groups.GroupRequest("all"), "test", NOW)
    assert query_metrics(kit.db, Question(step="minute", by=("device", "version"))) == whole
    assert query_metrics(kit.db, Question(step="minute", by=("device", "version"), group="everyone")) == whole
    assert len(query_metrics(kit.db, Question(group="everyone", limit=3)).points) == 3


def test_csv_has_a_line_a_point_and_no_formula(kit: Kit, fleet: list[str]) -> None:
    found = list(csv.DictReader(io.StringIO(as_csv(query_metrics(kit.db, Question(step="day", by=("version",)))))))
    assert [(row["version"], row["windows"], row["labels"]) for row in found] == [
        ("1.0", "5", '{"a": 5}'),
        ("2.0", "5", '{"a": 5}'),
    ]
    assert "device" not in found[0]
    evil = Metrics([MetricsPoint(1.0, model="=HYPERLINK(1)", confidence_mean=None, cpu_percent=-1.5)])
    assert as_csv(evil).splitlines() == ["at,model,confidence_mean,cpu_percent", "1.0,'=HYPERLINK(1),,-1.5"]
    assert as_csv(Metrics([])) == "at\n"


@given(st.text(max_size=20))
def test_no_step_is_taken_for_another(step: str) -> None:
    if step not in ("minute", "hour", "day"):
        with pytest.raises(BadRequestError):
            reports._check(Question(step=step))
