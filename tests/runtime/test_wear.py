"""What the journal costs a flash card: counted, projected, and kept within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ConfigError
from tinylcm.wear import HOUR_S, HOURS, INTERVAL_S_MAX, STEP_S, SYNC_BYTES, Wear


def test_bytes_and_fsyncs_of_the_last_day_count() -> None:
    wear = Wear(0, 1.0, 0.0)
    for hour in range(48):
        wear.note(hour * HOUR_S + 1, 1000, 2)
    report = wear.report(48 * HOUR_S - 1)
    assert report["written_bytes"] == 25 * 1000 and report["syncs"] == 25 * 2
    assert report["device_bytes_estimate"] == 25 * (1000 + 2 * SYNC_BYTES)
    assert report["projected_bytes_per_day"] == pytest.approx(24 * (1000 + 2 * SYNC_BYTES), rel=0.01)
    assert wear.report(200 * HOUR_S)["written_bytes"] == 0


def test_a_projection_waits_for_a_minute() -> None:
    wear = Wear(0, 1.0, 0.0)
    wear.note(0.0, 6000, 0)
    assert wear.report(59.0)["projected_bytes_per_day"] is None
    assert wear.report(60.0)["projected_bytes_per_day"] == 6000 * 24 * 60


def test_over_the_budget_the_interval_doubles_to_ten_minutes_and_comes_back() -> None:
    wear = Wear(10_000, 1.0, 0.0)
    wear.note(0.0, 50_000, 0)
    intervals = [wear.interval_s(step * STEP_S) for step in range(1, 15)]
    assert intervals[:4] == [2.0, 4.0, 8.0, 16.0] and intervals[-1] == INTERVAL_S_MAX
    assert wear.report(14 * STEP_S)["stretched"] is True
    later_s = (HOURS + 2) * HOUR_S
    relaxed = [wear.interval_s(later_s + step * STEP_S) for step in range(15)]
    assert relaxed == sorted(relaxed, reverse=True) and relaxed[-1] == 1.0


def test_without_a_budget_and_below_it_nothing_is_stretched() -> None:
    for budget in (0, 1 << 40):
        wear = Wear(budget, 0.5, 0.0)
        wear.note(0.0, 1 << 30, 10)
        assert [wear.interval_s(step * STEP_S) for step in range(10)] == [0.5] * 10


def test_a_long_configured_interval_is_never_shortened() -> None:
    wear = Wear(1, 1800.0, 0.0)
    wear.note(0.0, 1 << 20, 1)
    assert {wear.interval_s(step * STEP_S) for step in range(1, 20)} == {1800.0}


def test_a_restart_is_no_way_around_the_budget() -> None:
    wear = Wear(10_000, 1.0, 0.0)
    wear.note(0.0, 50_000, 3)
    wear.interval_s(STEP_S)
    again = Wear(10_000, 1.0, 5.0)
    assert again.restore(wear.state())
    assert again.day_bytes == wear.day_bytes and again.interval_s(5.0) == 2.0
    without = Wear(0, 1.0, 0.0)
    assert without.restore(wear.state()) and without.interval_s(STEP_S) == 1.0


@pytest.mark.parametrize(
    "state",
    [
        None, [], {}, {"hours": [], "doublings": 0}, {"hours": [[1]], "doublings": 0},
        {"hours": [[1, -1]], "doublings": 0},
        {"hours": [[1, 1]] * (HOURS + 2), "doublings": 0}, {"hours": [[1, 1]], "doublings": 31},
        {"hours": [[1, 1]], "doublings": True}, {"hours": [[1.5, 1]], "doublings": 0},
    ],
)  # fmt: skip
def test_what_is_no_state_changes_nothing(state: object) -> None:
    wear = Wear(0, 1.0, 0.0)
    wear.note(0.0, 7, 0)
    assert not wear.restore(state)  # type: ignore[arg-type]
    assert wear.day_bytes == 7


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="wear_bytes_per_day is -1"):
        Wear(-1, 1.0, 0.0)


@given(st.lists(st.tuples(st.floats(0, 5 * HOUR_S), st.integers(0, 1 << 30), st.integers(0, 1000)), max_size=40))
def test_the_interval_stays_within_its_bounds(steps: list[tuple[float, int, int]]) -> None:
    wear, now_s = Wear(1 << 20, 1.0, 0.0), 0.0
    for wait_s, written, syncs in steps:
        now_s += wait_s
        wear.note(now_s, written, syncs)
        assert 1.0 <= wear.interval_s(now_s) <= INTERVAL_S_MAX
    restored = Wear(1 << 20, 1.0, now_s)
    assert restored.restore(wear.state()) and restored.day_bytes == wear.day_bytes
