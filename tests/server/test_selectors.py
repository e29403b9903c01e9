"""Selectors: the grammar, what is not known, and errors that point at the character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinysphere.errors import BadRequestError
from tinysphere.selectors import CHARACTERS_MAX, DEPTH_MAX, TERMS_MAX, facts_of, parse

FACTS = facts_of(
    "d1",
    "watch 01",
    {"site": "berlin", "rack": "12", "room": "a,b", "scale": "2.5"},
    {
        "machine": "aarch64",
        "system": "linux",
        "cpus": 4,
        "ram_bytes": 512 << 20,
        "python": "3.11.2",
        "tinylcm": "0.1.0",
        "backends": ["onnx", "knn"],
    },
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", True),
        ("  all ", True),
        ("id=d1", True),
        ("id=d2", False),
        ('name="watch 01"', True),
        ('room="a,b"', True),
        ('name="watch\\ 01"', True),
        ("site=berlin and ram_mb>=512", True),
        ("site=berlin,rack=12", True),
        ("site=berlin,rack=13", False),
        ("ram_mb>512", False),
        ("ram_mb<=512 and cpus>3.5", True),
        ("rack<13", True),
        ("scale>2.25", True),
        ("python>=3.9", True),  # part by part, not as text
        ("python<3.11.10", True),
        ("tinylcm>=0.1.0", True),
        ("cpus<4.25 and cpus>3.95", True),
        ("cpus>=-1", True),
        ("backend=onnx", True),
        ("backend=tflite", False),
        ("backend in (tflite, knn)", True),
        ("site in (paris,rome)", False),
        ("not site=paris", True),
        ("site!=paris and not (cpus<4 or machine=armv7l)", True),
        ("site=paris or site=berlin and cpus=4", True),  # and binds closer
        ("(site=paris or site=berlin) and cpus=5", False),
        ("site exists", True),
        ("not floor exists", True),
        ("floor=1", False),
        ("floor!=1", True),
        ("floor<5", False),
        ("site<5", False),
        ("site=and", False),
    ],
)
def test_what_a_selector_means(text: str, expected: bool) -> None:
    assert parse(text).matches(FACTS) is expected


def test_a_label_goes_before_a_fact_and_never_before_the_id() -> None:
    facts = facts_of("d1", "w", {"machine": "toaster", "id": "d9"}, {"machine": "x86_64"})
    assert parse("machine=toaster and id=d1").matches(facts)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 1),
        ("site=", 6),
        ("a=1,b=", 7),
        ("a=1,,b=2", 5),
        ("=x", 1),
        ("a=b, =x", 6),
        ("a=1 2", 5),
        ("a=1 and", 8),
        ("(a=1", 5),
        ("a=1)", 4),
        ("a>b", 3),
        ("a in b", 6),
        ("a in (b", 8),
        ('a="b', 3),
        ("a=1 ! b", 5),
        ("a", 1),
        ("or=1", 1),
        ("a b=1", 1),
        ("everywhere", 1),
        ("site exists=1", 12),
        ("not", 4),
        ("a=(b)", 3),
    ],
)
def test_a_wrong_selector_is_pointed_at(text: str, at: int) -> None:
    with pytest.raises(BadRequestError, match=f"at character {at}[,:]"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a=" + "x" * CHARACTERS_MAX,
        ",".join(["a=1"] * (TERMS_MAX + 1)),
        "(" * (DEPTH_MAX + 2) + "a=1" + ")" * (DEPTH_MAX + 2),
        "not " * (DEPTH_MAX + 2) + "a=1",
    ],
)
def test_selectors_are_bounded(text: str) -> None:
    with pytest.raises(BadRequestError, match="selector: "):
        parse(text)


@given(st.text(alphabet='ab1=<>!()," \\and or not in', max_size=60))
def test_any_text_is_a_selector_or_an_error_that_points(text: str) -> None:
    try:
        assert parse(text).matches(FACTS) in (True, False)
    except BadRequestError as error:
        assert "at character" in str(error)


WORD = st.sampled_from(["a", "b", "site", "cpus"])
TERM = st.builds(lambda key, mark, value: f"{key}{mark}{value}", WORD, st.sampled_from(["=", "!="]), WORD)


@given(st.lists(TERM, min_size=1, max_size=5), st.lists(TERM, min_size=1, max_size=5))
def test_and_or_and_not_are_those_of_logic(first: list[str], second: list[str]) -> None:
    def hold(text: str) -> bool:
        return parse(text).matches(FACTS)

    both, either = " and ".join(first), " or ".join(second)
    assert hold(both) == all(map(hold, first)) and hold(either) == any(map(hold, second))
    assert hold(f"not ({both})") == (not hold(both))
    assert hold(f"({both}) and ({either})") == (hold(both) and hold(either))
