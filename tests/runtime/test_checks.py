"""Untrusted mappings: every wrong field is named with its place, in the class of error that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.checks import INTEGER_MAX, Fields, is_utf8
from tinylcm.errors import ConfigError, WireError

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
READERS: list[Callable[[Fields], object]] = [
    lambda fields: fields.text("k"),
    lambda fields: fields.natural("k"),
    lambda fields: fields.number("k"),
    lambda fields: fields.numbers("k"),
    lambda fields: fields.texts("k"),
    lambda fields: fields.items("k"),
    lambda fields: list(fields.tables("k")),
    lambda fields: fields.table("k"),
    lambda fields: fields.typed("k", dict),
]


@pytest.mark.parametrize("value", [None, 1, "text", [1], b"bytes"])
def test_anything_but_a_mapping_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="place: expected a table of fields, got"):
        Fields(value, "place", WireError)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_field_is_named(read: Callable[[Fields], object]) -> None:
    with pytest.raises(ConfigError, match=r"place\.k: is missing"):
        read(Fields({}, "place", ConfigError))


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (READERS[0], 1, "expected str, got int"),
        (READERS[0], "x" * 201, "has 201 characters, expected 0 to 200"),
        (READERS[0], "\ud800", "half a surrogate pair"),
        (READERS[1], True, "expected int, got bool"),
        (READERS[1], 1.0, "expected int, got float"),
        (READERS[1], -1, f"is -1, expected 0 to {INTEGER_MAX}"),
        (READERS[1], INTEGER_MAX + 1, "expected 0 to"),
        (READERS[2], math.nan, "expected a finite number, got nan"),
        (READERS[2], math.inf, "expected a finite number, got inf"),
        (READERS[2], 10**400, "expected a finite number, got inf"),
        (READERS[2], "1", "expected a finite number, got '1'"),
        (READERS[2], True, "expected a finite number, got True"),
        (READERS[3], [1, "2"], r"k\.1: expected a finite number"),
        (READERS[3], [0] * 100_001, "has 100001 items"),
        (READERS[4], ["a", 1], r"k\[1\]: expected a string"),
        (READERS[4], ["\udfff"], r"k\[0\]: expected a string"),
        (READERS[5], {"a": 1}, "expected a list, got dict"),
        (READERS[5], [0] * 10_001, "has 10001 items, at most 10000"),
        (READERS[6], [{}, 1], r"k\[1\]: expected a table of fields, got int"),
        (READERS[7], [], "k: expected a table of fields, got list"),
        (READERS[8], None, "expected dict, got NoneType"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(
    read: Callable[[Fields], object], value: object, message: str
) -> None:
    with pytest.raises(WireError, match=message) as caught:
        read(Fields({"k": value}, "place", WireError))
    assert "place.k" in str(caught.value)


@given(ANY, st.sampled_from(READERS))
def test_any_value_is_read_or_refused(value: object, read: Callable[[Fields], object]) -> None:
    try:
        read(Fields({"k": value}, "place", WireError))
    except WireError as error:
        assert str(error).startswith("place.k")


def test_bounds_are_part_of_what_is_allowed() -> None:
    fields = Fields({"n": 5, "x": 2.5, "t": "ab"}, "place", WireError)
    assert fields.natural("n", low=5, high=5) == 5
    assert fields.number("x", low=2.5, high=2.5) == 2.5
    assert fields.text("t", length_min=2, length_max=2) == "ab"
    with pytest.raises(WireError, match=r"is 2\.5, expected 3 to 4"):
        fields.number("x", low=3, high=4)


def test_defaults_are_used_for_what_is_missing_only() -> None:
    fields = Fields({"n": 5}, "place", WireError)
    assert (fields.natural("n", 1), fields.natural("m", 1), fields.text("t", "")) == (5, 1, "")
    assert fields.number("n") == 5.0
    assert ("n" in fields, "m" in fields) == (True, False)
    assert list(fields.tables("rows", [])) == []


def test_a_misspelt_key_is_an_error() -> None:
    fields = Fields({"name": 1, "naem": 2}, "place", ConfigError)
    with pytest.raises(ConfigError, match=r"place\.naem: is not known here; known: name, size"):
        fields.refuse_unknown("name", "size")
    fields.refuse_unknown("name", "naem")


@given(st.text(st.characters(exclude_categories=[])))
def test_is_utf8_agrees_with_the_codec(text: str) -> None:
    assert is_utf8(text) == (text.encode("utf-8", "replace").decode() == text)
