"""What the fleet was used for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, Web, make_kit, make_web, record, summary
from tinysphere import groups, usage
from tinysphere.errors import BadRequestError, InvalidError, NotFoundError
from tinysphere.usage import Question, as_csv, query_usage

DAY_NS = 86_400_000_000_000
TODAY = usage.day_name(NOW - 1000)
YESTERDAY = usage.day_name(NOW - 1000 - 86_400)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def use(kit: Kit) -> list[str]:
    """Two devices: 3 and 2 predictions of activity today, 4 of gesture yesterday; one error."""
    devices = [kit.enrol("one", "11" * 32), kit.enrol("two", "22" * 32)]
    anchor = {"boot": "b1", "boot_ns": 10_000_000_000 + DAY_NS}
    today = {"boot_ns": anchor["boot_ns"]}
    for device, count, errors in ((devices[0], 3, 1), (devices[1], 2, 0)):
        labels = {"walking": count - 1, "running": 1, "never": 0}
        payload = summary([1.0] * count, [0.5] * count, model="activity", labels=labels, errors=errors)
        yesterday = record(2, "summary", summary([1.0] * 2, [0.5] * 2), boot_ns=10_000_000_000)
        from tinylcm.wire import Anchor

        details = [record(1, "summary", payload, **today), yesterday]
        kit.sync(device, details=details, anchor=Anchor(10_000_000_000 + DAY_NS, NOW))
    return devices


def test_predictions_are_counted_by_day_model_version_and_label(kit: Kit) -> None:
    use(kit)
    found = query_usage(kit.db, Question(), NOW - 1000)
    assert (found.until, found.predictions, found.errors) == (TODAY, 9, 1)
    counted = [(item.day, item.model, item.version, item.label, item.predictions) for item in found.items]
    assert counted == [
        (YESTERDAY, "gesture", "1.0.0", "a", 4),
        (TODAY, "activity", "1.0.0", "running", 2),
        (TODAY, "activity", "1.0.0", "walking", 3),
    ]


def test_what_is_not_kept_apart_is_added_up_with_its_devices_and_errors(kit: Kit) -> None:
    devices = use(kit)

    def asked(**question: object) -> list[tuple[object, ...]]:
        items = query_usage(kit.db, Question(**question), NOW - 1000).items  # type: ignore[arg-type]
        return [(item.model, item.predictions, item.errors, item.devices) for item in items]

    assert asked(by=("model",)) == [("activity", 5, 1, 2), ("gesture", 4, 0, 2)]
    assert asked(by=("model",), device=devices[1]) == [("activity", 2, 0, 1), ("gesture", 2, 0, 1)]
    assert asked(by=("model",), model="gesture", version="1.0.0") == [("gesture", 4, 0, 2)]
    assert asked(by=("model",), since=NOW - 1000, until=NOW - 1000) == [("activity", 5, 1, 2)]
    assert asked(by=("model",), until=NOW - 40 * 86_400) == []
    groups.put(kit.db, "first", groups.GroupRequest("name=one"), "test", NOW)
    assert asked(by=("model",), group="first", model="activity") == [("activity", 3, 1, 1)]


def test_questions_that_cannot_be_answered_are_refused(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    use(kit)
    for wrong, said in (
        ({"by": ("device",)}, "expected some of day, model"),
        ({"since": NOW, "until": NOW - 86_400}, "before its since"),
        ({"since": 1e18, "until": 1e18}, "a day that has a name"),
    ):
        with pytest.raises(BadRequestError, match=said):
            query_usage(kit.db, Question(**wrong), NOW)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no group"):
        query_usage(kit.db, Question(group="none"), NOW)
    monkeypatch.setattr(usage, "ITEMS_MAX", 2)
    with pytest.raises(InvalidError, match="more than 2 items"):
        query_usage(kit.db, Question(), NOW)


def test_no_number_of_a_device_breaks_the_sums(kit: Kit) -> None:
    most = (1 << 63) - 1
    for number in range(2):
        device = kit.enrol(str(number), f"{number}{number}" * 32)
        kit.sync(device, details=[record(1, "summary", summary([1.0], [0.5], windows=most, labels={"a": most}))])
    found = query_usage(kit.db, Question(), NOW)
    assert found.predictions == most and found.items[0].predictions == most
    assert query_usage(kit.db, Question(by=("model",)), NOW).items[0].devices == 2
    assert query_usage(kit.db, Question(by=("day",), device="dnone"), NOW).items == []


def test_a_spreadsheet_gets_no_formula(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, details=[record(1, "summary", summary([1.0], [0.5], labels={"=1+1": 1}))])
    lines = list(csv.DictReader(io.StringIO(as_csv(query_usage(kit.db, Question(), NOW)))))
    assert [(line["label"], line["predictions"]) for line in lines] == [("'=1+1", "1")]
    assert as_csv(query_usage(kit.db, Question(device="dnone"), NOW)) == "predictions\n"


def test_usage_over_http_as_json_and_as_csv(tmp_path: Path) -> None:
    web: Web = make_web(tmp_path)
    with web.client:
        use(web.kit)
        viewer = web.bearer(web.kit.token("viewer"))
        found = web.client.get("/api/v1/usage?by=model,day", headers=viewer).json()
        assert found["items"][0] == {
            "predictions": 5, "day": TODAY, "model": "activity", "errors": 1, "devices": 2,
        }  # fmt: skip
        answer = web.client.get("/api/v1/usage?by=model", headers={**viewer, "Accept": "text/csv"})
        assert answer.text == "model,predictions,errors,devices\nactivity,5,1,2\ngesture,4,0,2\n"
        assert web.client.get("/api/v1/usage?by=colour", headers=viewer).status_code == 400
