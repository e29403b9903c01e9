"""Windows over rows, blocks and samples with times, the policies for what is missing, and the sentences of refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylcm._ext.ring import Reader
from tinylcm.errors import ConfigError, InputError
from tinylcm.manifest import InputSpec, WindowSpec
from tinylcm.window import Block, Counts, Lost, Sample, Windower, load_window

SPEC = InputSpec("imu", (1, 4, 2), channels=("ax", "ay"))
ONE = InputSpec("x", (1, 4), channels=("x",))
JITTER = 0.5


def windower_of(spec: InputSpec, *windows: WindowSpec, ring_samples: int | None = None) -> Windower:
    return Windower([(spec, window) for window in windows], 1 if spec is ONE else 2, ring_samples)


def read(reader: Reader) -> list[list[float]]:
    out = np.zeros((reader.window, reader.ring.channels), dtype=np.float32)
    reader.copy_window(out)
    return out.tolist()


def feed(windower: Windower, item: object) -> list[str | list[list[float]]]:
    """The sentence of each error and the values of each window."""
    return [str(due) if isinstance(due, InputError) else read(due) for due in windower.feed(item)]


def stream(windower: Windower, items: list[object]) -> list[tuple[list[float], int]]:
    """The windows of a stream of one channel, each with how many of its samples others stand in for."""
    windows = []
    for item in items:
        for due in windower.feed(item):
            if isinstance(due, Reader):
                windows.append(([row[0] for row in read(due)], due.filled))
    return windows


def counts(windower: Windower) -> dict[str, int]:
    taken = windower.take_counts() or Counts(0, 0, 0, 0, 0, 0, 0)
    return {name: getattr(taken, name) for name in Counts.__slots__ if getattr(taken, name)}


# What is wrong with a sample ----------------------------------------------------------------------------------


def test_errors_name_the_input_the_sample_and_the_channel() -> None:
    windower = windower_of(SPEC, WindowSpec(4, 2))
    assert feed(windower, [1.0, 2.0]) == []
    for item, problem in (
        ([1.0, None], "ay is no number but NoneType"),
        ((1.0, float("inf")), "ay is NaN, infinite or too large for float32"),
        ([1.0, 2.0, 3.0], "expected 2 channels, got 3"),
        (np.zeros((2, 3)), "expected rows of 2 channels, got float64 array [2, 3]"),
        (object(), "expected numbers, got object"),
        (Sample(float("nan"), [1.0, 2.0]), "its time is no finite number of seconds"),
        (Sample("noon", [1.0, 2.0]), "its time is no finite number of seconds"),  # type: ignore[arg-type]
        (Sample(10**400, [1.0, 2.0]), "its time is no finite number of seconds"),
        (Sample(1.0, [1.0]), "expected 2 channels, got 1"),
        (Block([[1.0, 2.0]], [1.0, 2.0]), "expected 1 times, got shape [2]"),
        (Block([[1.0, 2.0]], "noon"), "the times are no numbers"),
        (Block([[1.0, 2.0]], [10**400]), "the times are no numbers"),
        (Block([[1.0, 2.0]], 1.0), "one time for a block needs the window's rate_hz"),
        (Lost(3, "the queue was full"), "the source has lost 3 samples: the queue was full"),
    ):
        place = f"input 'imu', sample {windower.offered}: "
        (message,) = feed(windower, item)
        assert isinstance(message, str) and message.startswith(place) and problem in message, message
    good = windower.offered
    (message,) = feed(windower, np.array([[1, 1], [2, np.nan], [3, 3]]))
    assert message == f"input 'imu', sample {good + 1}: ay is NaN, infinite or too large for float32"


def test_windows_never_span_a_bad_sample() -> None:
    windower = windower_of(SPEC, WindowSpec(4, 1))
    rows = np.arange(18, dtype=float).reshape(9, 2)
    rows[4] = np.nan
    assert [window for window in feed(windower, rows) if isinstance(window, list)] == [
        rows[:4].tolist(),
        rows[5:].tolist(),
    ]


def test_integers_booleans_and_single_channels_are_numbers_too() -> None:
    one = windower_of(ONE, WindowSpec(3, 3))
    assert feed(one, np.array([1, 2, 3])) == [[[1], [2], [3]]]
    assert feed(one, [True]) == []
    assert feed(one, np.array([2, 3], dtype=np.uint8)) == [[[1], [2], [3]]]


@pytest.mark.parametrize("time_s", [1, np.float32(1), np.float64(1), np.int64(1)])
def test_times_are_numbers_of_any_kind(time_s: float) -> None:
    windower = windower_of(ONE, WindowSpec(1, 1))
    (due,) = windower.feed(Sample(time_s, np.array([5.0])))
    assert isinstance(due, Reader) and due.start_s == due.end_s == 1.0


@pytest.mark.parametrize(
    ("window", "ring", "problem"),
    [
        (WindowSpec(4, 1), 3, "raise ring_samples"),
        (WindowSpec(4, 0), None, "hop of at least 1"),
        (WindowSpec(4, 1, missing="guess"), None, "missing is one of drop, hold, interpolate, mark"),
        (WindowSpec(4, 1, late="hold"), None, "late and duplicate one of drop, mark"),
        (WindowSpec(4, 1, rate_hz=math.nan), None, "rate_hz"),
    ],
)
def test_windows_that_cannot_be_are_refused(window: WindowSpec, ring: int | None, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        windower_of(SPEC, window, ring_samples=ring)


# What stands in for missing samples ---------------------------------------------------------------------------


def at(*times: float) -> list[object]:
    """A sample of 10 times its time at each time."""
    return [Sample(float(time), [10.0 * time]) for time in times]


@pytest.mark.parametrize(
    ("missing", "windows", "counted"),
    [
        ("drop", [([40, 50, 60], 0)], {"missing": 2, "gaps": 1, "restarts": 1}),
        ("hold", [([0, 10, 10], 1), ([10, 40, 50], 1)], {"missing": 2, "filled": 2}),
        ("mark", [([0, 10, 10], 1), ([10, 40, 50], 1)], {"missing": 2, "filled": 2}),
        ("interpolate", [([0, 10, 20], 1), ([30, 40, 50], 1)], {"missing": 2, "filled": 2}),
    ],
)
def test_a_gap_in_the_times(missing: str, windows: list[tuple[list[float], int]], counted: dict[str, int]) -> None:
    windower = windower_of(ONE, WindowSpec(3, 3, 1.0, missing=missing))
    assert stream(windower, at(0, 1, 4, 5, 6)) == windows
    assert counts(windower) == counted and counts(windower) == {}


@pytest.mark.parametrize(
    ("missing", "windows"),
    [
        ("drop", [([20, 30], 0)]),
        ("hold", [([0, 0], 1), ([20, 30], 0)]),
        ("interpolate", [([0, 10], 1), ([20, 30], 0)]),
    ],
)
@pytest.mark.parametrize("bad", [[math.nan], [1.0, 2.0], "word", Sample(math.nan, [1.0]), Sample(1.0, [math.nan])])
@pytest.mark.parametrize("timed", [False, True])
def test_a_bad_row_stands_for_a_missing_one(
    missing: str, windows: list[tuple[list[float], int]], bad: object, timed: bool
) -> None:
    windower = windower_of(ONE, WindowSpec(2, 2, 1.0, missing=missing))
    items: list[object] = at(0, 2, 3) if timed else [[0.0], [20.0], [30.0]]
    items.insert(1, bad)
    assert stream(windower, items) == windows


@pytest.mark.parametrize("missing", ["hold", "interpolate", "mark"])
def test_more_bad_rows_than_a_gap_may_have_begin_anew(missing: str) -> None:
    windower = windower_of(ONE, WindowSpec(2, 2, 1.0, missing=missing, gap_samples_max=3))
    windows = stream(windower, [[1.0], *([math.nan],) * 50, [2.0], [3.0]])
    assert windows[-1] == ([2, 3], 0) and len(windows) <= 3
    assert counts(windower)["restarts"] == 1


@pytest.mark.parametrize("missing", ["hold", "interpolate", "mark"])
def test_a_gap_of_a_year_begins_anew_and_fills_nothing(missing: str) -> None:
    windower = windower_of(ONE, WindowSpec(2, 2, 100.0, missing=missing))
    assert len(stream(windower, at(0, 0.01, 3e7, 3e7 + 0.01))) == 2
    counted = counts(windower)
    assert counted["gaps"] == counted["restarts"] == 1 and "filled" not in counted
    assert counted["missing"] <= 3, "a clock that was set does not mean that a million samples did not come"


def test_a_clock_that_is_set_back_begins_anew_once() -> None:
    windower = windower_of(ONE, WindowSpec(2, 2, 1.0, missing="hold"))
    assert stream(windower, at(1000, 1001, 2, 3, 4, 5)) == [([10000, 10010], 0), ([20, 30], 0), ([40, 50], 0)]
    assert counts(windower) == {"gaps": 1, "restarts": 1}


@pytest.mark.parametrize(
    ("policy", "windows", "counted"),
    [
        ("drop", [([0, 10], 0), ([20, 30], 0)], {"dropped": 2, "late": 1, "duplicates": 1}),
        ("mark", [([0, 10], 0), ([2, 11], 2), ([20, 30], 0)], {"late": 1, "duplicates": 1}),
    ],
)
def test_late_samples_and_duplicates(
    policy: str, windows: list[tuple[list[float], int]], counted: dict[str, int]
) -> None:
    windower = windower_of(ONE, WindowSpec(2, 2, 1.0, late=policy, duplicate=policy))
    assert stream(windower, at(0, 1, 0.2, 1.1, 2, 3)) == windows
    assert counts(windower) == counted


def test_a_source_that_is_100_times_too_fast_gives_duplicates() -> None:
    windower = windower_of(ONE, WindowSpec(4, 4, 1.0))
    windows = stream(windower, at(*np.arange(0, 20, 0.01)))
    counted = counts(windower)
    assert counted["dropped"] == counted["duplicates"] >= 1900
    assert len(windows) <= 10 and not counted.get("missing")


def test_times_reach_the_reader_and_a_block_may_have_one_time() -> None:
    windower = windower_of(ONE, WindowSpec(3, 3, 10.0))
    for item in (Block([[1], [2], [3]], 5.0), Block(np.ones((3, 1)), [5.3, 5.4, 5.5])):
        (due,) = windower.feed(item)
        assert isinstance(due, Reader) and due.end_s == pytest.approx(due.start_s + 0.2)
    assert due.start_s == 5.3


def test_samples_that_a_source_has_lost_are_not_spanned() -> None:
    items: list[object] = [[1.0], Lost(1, "full"), [3.0], [4.0]]
    assert stream(windower_of(ONE, WindowSpec(2, 2)), items) == [([3, 4], 0)]
    held = windower_of(ONE, WindowSpec(2, 2, missing="hold"))
    assert stream(held, items) == [([1, 1], 1), ([3, 4], 0)]
    many = windower_of(ONE, WindowSpec(2, 2, missing="hold"))
    assert stream(many, [[1.0], Lost(1 << 60, "full"), [3.0], [4.0]])[-1] == ([3, 4], 0)
    assert counts(many)["restarts"] == 1


# Against a list ------------------------------------------------------------------------------------------------


class Listed:
    """The rules in plain Python: every row ever taken is kept, `anew` is where windows may begin."""

    def __init__(self, cuts: list[WindowSpec]) -> None:
        self.policy, self.cuts = cuts[0], cuts
        self.gap = self.policy.gap_samples_max or self.policy.samples
        self.rows: list[tuple[float, float, bool]] = []  # value, time, another stands in for it
        self.anew = 0
        self.last = math.nan  # time
        self.bad = 0  # since the last good row
        self.counted = dict.fromkeys(Counts.__slots__, 0)
        self.windows: list[list[tuple[list[float], int, int, float, float]]] = [[] for _ in cuts]

    def accept(self, value: float, time: float, marked: bool = False) -> None:
        self.rows.append((value, time, marked))
        for cut, windows in zip(self.cuts, self.windows, strict=True):
            since = len(self.rows) - self.anew - cut.samples
            if since >= 0 and since % cut.hop == 0:
                rows = self.rows[-cut.samples :]
                marks = sum(marked for _, _, marked in rows)
                windows.append(([v for v, _, _ in rows], len(self.rows) - cut.samples, marks, rows[0][1], rows[-1][1]))

    def begin_anew(self) -> None:
        self.counted["gaps"] += 1
        self.counted["restarts"] += len(self.rows) > self.anew
        self.anew, self.bad = len(self.rows), 0

    def refuse(self) -> None:
        self.counted["dropped"] += 1
        self.counted["missing"] += 1
        if len(self.rows) == self.anew:
            return
        if self.policy.missing == "drop" or self.bad >= self.gap:
            self.begin_anew()
            return
        self.bad += 1
        if self.policy.missing != "interpolate":
            self.last += 1 / self.policy.rate_hz if self.policy.rate_hz else 0
            self.counted["filled"] += 1
            self.accept(self.rows[-1][0], self.last, True)

    def fill(self, count: int, value: float, time: float) -> None:
        before, start, _ = self.rows[-1]
        for index in range(1, count + 1):
            share = index / (count + 1)
            between = before + (value - before) * share if self.policy.missing == "interpolate" else before
            self.counted["filled"] += 1
            self.accept(between, start + (time - start) * share, True)

    def take(self, value: float, time: float) -> None:
        fill = self.bad if self.policy.missing == "interpolate" else 0
        self.bad = 0
        rate, late = self.policy.rate_hz, False
        if len(self.rows) > self.anew and not math.isnan(time) and not math.isnan(self.last):
            steps = (time - self.last) * rate if rate else (2.0 if time > self.last else 0.0)
            late = steps <= JITTER - 1 or (not rate and time < self.last)
            if steps < -self.gap:
                self.begin_anew()
                fill = 0
            elif steps < 1 - JITTER:
                self.counted["late" if late else "duplicates"] += 1
                if (self.policy.late if late else self.policy.duplicate) == "drop":
                    self.counted["dropped"] += 1
                    return
                self.accept(value, self.last, True)
                return
            elif rate and steps > 1 + JITTER:
                known, fill = fill, round(steps) - 1
                self.counted["missing"] += max(0, fill - known)
        if fill and (self.policy.missing == "drop" or fill > self.gap):
            self.begin_anew()
        elif fill:
            self.fill(fill, value, time)
        self.last = time
        self.accept(value, time)


def as_items(events: list[tuple[float | None, float | None]], sizes: list[int]) -> list[object]:
    """The same events as rows, blocks, `Sample`s and `Block`s: runs of the same kind go into one block."""
    items: list[object] = []
    place, turn = 0, 0
    while place < len(events):
        timed, size = events[place][1] is not None, sizes[turn % len(sizes)]
        turn += 1
        run = [events[place]]
        while len(run) < size and place + len(run) < len(events):
            if (events[place + len(run)][1] is not None) != timed:
                break
            run.append(events[place + len(run)])
        place += len(run)
        values = [[math.nan if value is None else value] for value, _ in run]
        if size == 1:
            items.append(Sample(run[0][1], values[0]) if timed else values[0])
        else:
            items.append(Block(values, [time for _, time in run]) if timed else np.array(values))
    return items


EVENTS = st.lists(
    st.tuples(
        st.one_of(st.integers(-100, 100).map(float), st.integers(0, 9).map(lambda n: float(n) if n else None)),
        st.one_of(st.none(), st.sampled_from([0.25, 0.75, 1.0, 1.0, 1.0, 1.25, 2.0, 3.0, 0.0, -1.0, -2.0, -9.0, 20.0])),
    ),
    max_size=50,
)


@settings(max_examples=400)
@given(
    events=EVENTS,
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    cuts=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3),
    rate_hz=st.sampled_from([0.0, 1.0, 4.0]),
    missing=st.sampled_from(["drop", "hold", "interpolate", "mark"]),
    late=st.sampled_from(["drop", "mark"]),
    duplicate=st.sampled_from(["drop", "mark"]),
    gap=st.integers(0, 4),
    spare=st.integers(0, 3),
)
def test_any_mix_gives_the_windows_of_a_list(
    events: list[tuple[float | None, float | None]],
    sizes: list[int],
    cuts: list[tuple[int, int]],
    rate_hz: float,
    missing: str,
    late: str,
    duplicate: str,
    gap: int,
    spare: int,
) -> None:
    first = WindowSpec(1, 1, rate_hz, missing=missing, late=late, duplicate=duplicate, gap_samples_max=gap)
    specs = [replace(first, samples=window, hop=hop) for window, hop in cuts]
    now, timed = 100.0, []
    for value, periods in events:
        now += (periods or 0.0) / (rate_hz or 1.0)
        timed.append((value, None if periods is None else now))
    listed = Listed(specs)
    for value, time in timed:
        if value is None:
            listed.refuse()
        else:
            listed.take(value, math.nan if time is None else time)
    windower = windower_of(ONE, *specs, ring_samples=max(window for window, _ in cuts) + spare)
    seen: list[list[tuple[list[float], int, int, float, float]]] = [[] for _ in cuts]
    errors = 0
    for item in as_items(timed, sizes):
        for due in windower.feed(item):
            if isinstance(due, InputError):
                errors += 1
                continue
            values = [row[0] for row in read(due)]
            place = windower.readers.index(due)
            seen[place].append((values, due.first_sample, due.filled, due.start_s, due.end_s))
    assert errors == sum(value is None for value, _ in timed) and windower.offered == len(timed)
    for got, want in zip(seen, listed.windows, strict=True):
        assert [window[1:3] for window in got] == [window[1:3] for window in want]
        np.testing.assert_allclose([w[0] for w in got], [w[0] for w in want], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose([w[3:] for w in got], [w[3:] for w in want], rtol=1e-9)
    counted = windower.take_counts()
    got_counts = {name: getattr(counted, name, 0) for name in Counts.__slots__}
    assert {**got_counts, "missing": 0} == {**listed.counted, "missing": 0}
    assert got_counts["missing"] <= listed.counted["missing"]  # a gap counts as at most one more than fits


# A whole window ------------------------------------------------------------------------------------------------


def test_a_whole_window_is_the_same_array_when_nothing_has_to_change() -> None:
    window = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert load_window(SPEC, window, (4, 2)) is window
    other = load_window(SPEC, window.astype(int).T.copy().T, (4, 2))
    assert other.dtype == np.float32 and other.flags.c_contiguous
    np.testing.assert_array_equal(other, window)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        ([[0, 0], [0, 0], [0, 0], [0, math.nan]], r"value at \[3, 1\] is NaN"),
        (np.array([[0, 0], [1e39, 0], [0, 0], [0, 0]]), r"value at \[1, 0\] is NaN, infinite or too large"),
        (np.zeros((2, 4)), r"expected shape \[4, 2\], got \[2, 4\]"),
        ([["a", "b"]], "expected float32 or numbers"),
        ([[1, 2], [3]], "expected an array of numbers"),
        (np.zeros((4, 2), dtype=complex), "complex128"),
    ],
)
def test_whole_windows_that_do_not_fit_are_refused(x: object, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_window(SPEC, x, (4, 2))
