"""Drift events with their evidence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, alarm, make_kit, record
from tinysphere import drifthub
from tinysphere.errors import BadRequestError, NotFoundError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def test_events_are_listed_newest_first_by_device_and_model(kit: Kit) -> None:
    token = kit.join(uses=2)
    one, two = kit.enrol("one", "1" * 64, token), kit.enrol("two", "2" * 64, token)
    kit.sync(one, events=[record(i, "alarm", alarm(window=i)) for i in (1, 2, 3)])
    kit.sync(two, events=[record(1, "alarm", alarm(model="other", histogram=None, statistic=None))])
    first = drifthub.list_events(kit.db, one, None, None, 2)
    rest = drifthub.list_events(kit.db, one, None, first.next, 2)
    assert [event.window for event in (*first.items, *rest.items)] == [3, 2, 1]
    other = drifthub.list_events(kit.db, None, "other", None, 10).items
    assert [(event.device_name, event.statistic, event.histogram) for event in other] == [("two", None, None)]
    assert drifthub.list_events(kit.db, "dnone", None, None, 10).items == []


def test_an_event_keeps_its_histogram_and_its_time(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, events=[record(1, "alarm", alarm())])
    number = drifthub.list_events(kit.db, device, None, None, 1).items[0].id
    event = drifthub.get_event(kit.db, number)
    assert event.histogram is not None and event.histogram.current == [0, 2]
    assert event.at == NOW - 6 and event.device_id == device


def test_an_alarm_of_a_board_names_it(kit: Kit) -> None:
    device = kit.enrol()
    kit.sync(device, events=[record(1, "alarm", alarm(board="nucleo-7")), record(2, "alarm", alarm())])
    found = drifthub.list_events(kit.db, device, None, None, 10).items
    assert [event.board for event in found] == ["", "nucleo-7"]


def test_what_is_not_there_is_said(kit: Kit) -> None:
    with pytest.raises(NotFoundError):
        drifthub.get_event(kit.db, 5)
    with pytest.raises(BadRequestError):
        drifthub.list_events(kit.db, None, None, "nonsense", 5)
