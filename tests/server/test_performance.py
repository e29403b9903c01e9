"""How versions do in the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, Web, alarm, make_kit, make_web, record, summary
from tinysphere import groups, reports
from tinysphere.errors import BadRequestError, InvalidError, NotFoundError
from tinysphere.performance import model_performance


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def run(kit: Kit) -> list[str]:
    """Two devices with version 1; the second goes on with version 2, which is slower and alarms."""
    devices = [kit.enrol("one", "11" * 32), kit.enrol("two", "22" * 32)]
    for device in devices:
        kit.sync(device, details=[record(1, "summary", summary([100.0, 300.0], [0.9, 0.7]), boot_ns=1_000_000_000)])
    payload = summary([1000.0] * 3, [0.5] * 3, version="2.0.0", errors=2, labels={"b": 2, "a": 1})
    events = [record(1, "alarm", alarm(version="2.0.0"))]
    kit.sync(devices[1], details=[record(2, "summary", payload, boot_ns=2_000_000_000)], events=events)
    return devices


def test_versions_stand_side_by_side(kit: Kit) -> None:
    run(kit)
    found = model_performance(kit.db, "gesture", None, None, None, NOW)
    first, second = found.versions
    assert (first.version, first.devices, first.running, first.windows, first.drift_events) == ("1.0.0", 2, 1, 4, 0)
    assert first.latency_mean_us == pytest.approx(200) and first.latency_max_us == 300
    assert first.confidence_mean == pytest.approx(0.8)
    assert (second.version, second.devices, second.running, second.windows) == ("2.0.0", 1, 1, 3)
    assert (second.errors, second.drift_events, second.labels) == (2, 1, {"b": 2, "a": 1})
    assert second.latency_p99_us == pytest.approx(1000, rel=0.0102)
    assert found.until == NOW and NOW - 8 * 86_400 < found.since <= NOW - 7 * 86_400


def test_a_group_and_a_time_narrow_it(kit: Kit) -> None:
    run(kit)
    groups.put(kit.db, "first", groups.GroupRequest("name=one"), "test", NOW)
    grouped = model_performance(kit.db, "gesture", "first", None, None, NOW).versions
    assert [(item.version, item.windows) for item in grouped] == [("1.0.0", 2)]
    short = model_performance(kit.db, "gesture", None, NOW - 7200, NOW, NOW)
    assert [item.windows for item in short.versions] == [4, 3] and short.since % 3600 == 0
    kit.upload()
    assert model_performance(kit.db, "gesture", None, NOW - 90_000, NOW - 86_400, NOW).versions == []


def test_what_is_not_there_is_named(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    run(kit)
    with pytest.raises(NotFoundError, match="no model 'other'"):
        model_performance(kit.db, "other", None, None, None, NOW)
    with pytest.raises(NotFoundError, match="no group"):
        model_performance(kit.db, "gesture", "none", None, None, NOW)
    with pytest.raises(BadRequestError, match="before its since"):
        model_performance(kit.db, "gesture", None, NOW, NOW - 1, NOW)
    monkeypatch.setattr(reports, "ROWS_MAX", 2)
    with pytest.raises(InvalidError, match="more than 2 rows"):
        model_performance(kit.db, "gesture", None, None, None, NOW)


def test_performance_over_http(tmp_path: Path) -> None:
    web: Web = make_web(tmp_path)
    with web.client:
        run(web.kit)
        viewer = web.bearer(web.kit.token("viewer"))
        found = web.client.get("/api/v1/models/gesture/performance", headers=viewer)
        assert [item["version"] for item in found.json()["versions"]] == ["1.0.0", "2.0.0"]
        assert web.client.get("/api/v1/models/none/performance", headers=viewer).status_code == 404
        assert web.client.get("/api/v1/models/gesture/performance?since=x", headers=viewer).status_code == 400


def test_accuracy_is_of_predictions_whose_true_label_came(kit: Kit) -> None:
    one, two = run(kit)
    for device, version, truths in ((one, "1.0.0", ("a", "a", "b")), (two, "2.0.0", ("a",))):
        body = {"model": "gesture", "version": version, "label": "a"}
        for number, truth in enumerate(truths, 10):
            kit.sync(device, details=[record(number, "sample", {**body, "prediction": f"p-{number}"})])
            kit.sync(device, events=[record(number, "label", {"prediction": f"p-{number}", "label": truth})])
    found = {item.version: item for item in model_performance(kit.db, "gesture", None, None, None, NOW).versions}
    assert found["1.0.0"].labelled == 3 and found["1.0.0"].accuracy == pytest.approx(2 / 3)
    assert found["2.0.0"].labelled == 1 and found["2.0.0"].accuracy == 1.0
    groups.put(kit.db, "second", groups.GroupRequest("name=two"), "test", NOW)
    grouped = model_performance(kit.db, "gesture", "second", None, None, NOW).versions
    assert {item.version: (item.labelled, item.accuracy) for item in grouped} == {"1.0.0": (0, None), "2.0.0": (1, 1.0)}
