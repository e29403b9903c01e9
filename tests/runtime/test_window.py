"""Windows and the sentences of refused samples."""

from __future__ import annotations

import numpy as np
import pytest
from tinylcm.errors import ConfigError, InputError
from tinylcm.package import InputSpec, WindowSpec
from tinylcm.window import Windower, load_window

SPEC = InputSpec("imu", (1, 4, 2), channels=("ax", "ay"))


def feed(windower: Windower, item: object) -> list[str | None]:
    return [None if error is None else str(error) for error in windower.feed(item)]


def test_errors_name_the_input_the_sample_and_the_channel() -> None:
    windower = Windower(SPEC, WindowSpec(4, 2))
    assert feed(windower, [1.0, 2.0]) == []
    assert feed(windower, [1.0, None]) == ["input 'imu', sample 1: ay is no number but NoneType"]
    assert feed(windower, (1.0, float("inf"))) == [
        "input 'imu', sample 2: ay is NaN, infinite or too large for float32"
    ]
    assert feed(windower, [1.0, 2.0, 3.0]) == ["input 'imu', sample 3: expected 2 channels, got 3"]
    assert feed(windower, np.zeros((2, 3))) == [
        "input 'imu', sample 4: expected rows of 2 channels, got float64 array [2, 3]"
    ]
    assert feed(windower, object()) == ["input 'imu', sample 5: expected numbers, got object"]
    assert feed(windower, np.array([[1, 1], [2, np.nan], [3, 3]]))[0].startswith("input 'imu', sample 7: ay is NaN")  # type: ignore[union-attr]


def test_windows_never_span_a_bad_sample() -> None:
    windower = Windower(SPEC, WindowSpec(4, 1))
    rows = np.arange(18, dtype=float).reshape(9, 2)
    rows[4] = np.nan
    results = feed(windower, rows)
    assert results.count(None) == 2  # samples 0-3, then 5-8


def test_integers_booleans_and_single_channels_are_numbers_too() -> None:
    one = Windower(InputSpec("x", (1, 3)), WindowSpec(3, 3))
    assert one.channels == 1
    assert feed(one, np.array([1, 2, 3])) == [None]
    assert feed(one, [True]) == []
    assert feed(one, np.array([2, 3], dtype=np.uint8)) == [None]


@pytest.mark.parametrize(
    ("window", "ring"), [(WindowSpec(3, 1), None), (WindowSpec(4, 1), 3), (WindowSpec(4, 0), None)]
)
def test_windows_that_cannot_be_are_refused(window: WindowSpec, ring: int | None) -> None:
    with pytest.raises(ConfigError):
        Windower(SPEC, window, ring)


def test_a_whole_window_is_copied_checked() -> None:
    tensor = np.zeros((1, 4, 2), dtype=np.float32)
    load_window(SPEC, np.arange(8).reshape(4, 2).T.copy().T, tensor)  # not contiguous, integers
    np.testing.assert_array_equal(tensor[0], np.arange(8).reshape(4, 2))
    with pytest.raises(InputError, match=r"value at \[3, 1\]"):
        load_window(SPEC, [[0, 0], [0, 0], [0, 0], [0, float("nan")]], tensor)
