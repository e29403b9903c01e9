"""What is JSON as it is, judged in Cython: never too short, and never a value that JSON cannot carry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm._ext.jsonable import json_bytes_max

TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(), inner, max_size=4) | st.tuples(inner)
    ),
    max_leaves=10,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, str):
        return "\ufffd" not in value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") or "\ufffd" in value
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value))


@given(VALUE, st.integers(0, 4))
def test_the_bound_holds_for_what_is_json_and_nothing_else_has_one(value: object, depth: int) -> None:
    bound = json_bytes_max(value, depth - 1)
    assert (bound >= 0) == (is_plain(value) and depth_of(value) <= depth)
    if bound >= 0:
        assert len(json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()) <= bound


@pytest.mark.parametrize(
    "value",
    [
        -(2**63), 2**63 - 1, -1.7976931348623157e308, "\x00" * 50, "\U0010ffff" * 50, '"\\' * 50,
        {"\x1f": "\x1f"}, [[]] * 50, {str(n): True for n in range(50)}, [None] * 50,
    ],
)  # fmt: skip
def test_the_longest_forms_fit(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= json_bytes_max(value, 5)


@pytest.mark.parametrize(
    "value",
    [
        2**63, -(2**63) - 1, 10**400, math.nan, math.inf, "\ud800", {"\udfff": 1}, {1: 1}, (1,), {1}, b"x",
        np.float64(1), object(),
    ],
)  # fmt: skip
def test_what_json_cannot_say_as_it_is_has_none(value: object) -> None:
    assert json_bytes_max(value, 12) == json_bytes_max([{"x": value}], 12) == -1


def test_a_value_that_holds_itself_ends() -> None:
    value: list[object] = []
    value.append(value)
    assert json_bytes_max(value, 12) == -1
