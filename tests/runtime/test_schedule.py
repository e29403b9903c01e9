"""When details may be sent: hours, metered links, a day's bytes, and clocks that are not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ConfigError
from tinylcm.schedule import HOUR_S, MINUTES, Schedule, parse_hours


def test_without_any_setting_details_go_at_once_and_always() -> None:
    schedule = Schedule()
    for now_s in (0.0, 1.0, 1e9):
        assert schedule.allows_details(now_s, None) and schedule.allows_details(now_s, 700)
        schedule.note(now_s, 1 << 40, details_ended=True)


def test_hours_may_span_midnight_and_be_several() -> None:
    assert parse_hours("01:00-05:00, 22:30-00:15") == ((60, 300), (1350, 15))
    schedule = Schedule(details_hours=parse_hours("01:00-05:00,22:30-00:15"))
    allowed = [minute for minute in range(MINUTES) if schedule.allows_details(0.0, minute)]
    assert allowed == [*range(15), *range(60, 300), *range(1350, MINUTES)]
    assert parse_hours("") == parse_hours(" , ") == ()


@pytest.mark.parametrize(
    "text", ["1:00-5:00", "25:00-03:00", "01:00", "01:00-05:60", "01:00-01:00", "night", "01:00–05:00"]
)
def test_what_are_no_hours_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="are no "):
        parse_hours(text)


def test_on_a_metered_link_details_go_once_in_an_interval() -> None:
    schedule = Schedule(metered=True, details_interval_s=100.0)
    assert schedule.allows_details(0.0, None)
    schedule.note(0.0, 10, details_ended=False)
    assert schedule.allows_details(1.0, None)  # what was begun is brought to its end
    schedule.note(1.0, 10, details_ended=True)
    assert not schedule.allows_details(100.9, None) and schedule.allows_details(101.0, None)


def test_while_the_time_is_not_known_the_interval_holds_and_nothing_falls_silent() -> None:
    schedule = Schedule(details_hours=parse_hours("01:00-02:00"), details_interval_s=100.0)
    assert schedule.allows_details(0.0, None)
    schedule.note(0.0, 10, details_ended=True)
    assert not schedule.allows_details(50.0, None) and schedule.allows_details(100.0, None)
    assert schedule.allows_details(50.0, 61) and not schedule.allows_details(100.0, 180)


def test_a_days_bytes_are_a_bound_that_passes_with_the_day() -> None:
    schedule = Schedule(bytes_per_day=1000)
    schedule.note(0.0, 999, details_ended=True)
    assert schedule.allows_details(1.0, None)
    schedule.note(1.0, 1, details_ended=True)
    assert not schedule.allows_details(2.0, None) and not schedule.allows_details(24 * HOUR_S, None)
    assert schedule.allows_details(26 * HOUR_S, None)


@given(st.lists(st.tuples(st.floats(0, 50 * HOUR_S), st.integers(0, 1000)), max_size=50))
def test_no_day_has_more_than_its_bytes_and_one_round_trip(steps: list[tuple[float, int]]) -> None:
    schedule, now_s, sent = Schedule(bytes_per_day=2000), 0.0, []
    for wait_s, count in steps:
        now_s += wait_s
        if schedule.allows_details(now_s, None):
            schedule.note(now_s, count, details_ended=True)
            sent.append((now_s, count))
    for end_s, _ in sent:
        assert sum(count for at_s, count in sent if end_s - 24 * HOUR_S < at_s <= end_s) <= 2000 + 1000
