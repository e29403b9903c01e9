"""Which devices are meant: `site=berlin and ram_mb>=512`.

    selector   = "all" | either
    either     = both { "or" both }
    both       = one { ("and" | ",") one }
    one        = "not" one | "(" either ")" | key comparison value | key "in" "(" value { "," value } ")" | key "exists"
    comparison = "=" | "!=" | "<" | "<=" | ">" | ">="

A key is `id`, `name`, a label, or a fact that the device has reported: `machine`, `system`, `cpus`, `ram_mb`, `python`,
`tinylcm`, `backend`, or `group`, the groups that it is in. A label of the same name goes before a fact.

Rules
- A value with blanks or marks stands in double quotes, in which a backslash takes the next character as it is.
- `<`, `<=`, `>` and `>=` compare numbers; where either side has two dots or more, both are versions and are compared
  part by part. What is neither matches nothing.
- What is not known of a device equals nothing: `site=x` and `site<5` fail, `site!=x` and `not site exists` hold.
- Text, terms and depth are bounded; an error points at the character.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from tinylcm.types import Json

from .errors import BadRequestError

CHARACTERS_MAX: Final = 1000
TERMS_MAX: Final = 32
DEPTH_MAX: Final = 12
_TOKEN: Final = re.compile(r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<mark><=|>=|!=|[=<>(),])|(?P<word>[^\s=<>!(),"]+))')
_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_VERSION: Final = re.compile(r"-?\d{1,15}(\.\d{1,15}){0,7}")
_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_REPORTED: Final = ("machine", "system", "cpus", "python", "tinylcm")
Facts = Mapping[str, Json]


class Selector(Protocol):
    """Something that a device is or is not."""

    def matches(self, facts: Facts) -> bool:
        """Whether a device of these facts is meant."""


@dataclass(frozen=True, slots=True)
class _All:
    def matches(self, facts: Facts) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Has:
    key: str

    def matches(self, facts: Facts) -> bool:
        return self.key in facts


@dataclass(frozen=True, slots=True)
class _Equals:
    key: str
    values: tuple[str, ...]

    def matches(self, facts: Facts) -> bool:
        found = facts.get(self.key)
        items = found if isinstance(found, list) else [found]
        return any(_shown(item) in self.values for item in items if item is not None)


@dataclass(frozen=True, slots=True)
class _Compares:
    key: str
    comparison: str
    value: str

    def matches(self, facts: Facts) -> bool:
        found, wanted = _numeral(facts.get(self.key)), self.value
        if found is None:
            return False
        compare = _COMPARISONS[self.comparison]
        if max(found.count("."), wanted.count(".")) < 2:
            return compare(float(found), float(wanted))
        return compare(_parts(found), _parts(wanted))


@dataclass(frozen=True, slots=True)
class _Not:
    inner: Selector

    def matches(self, facts: Facts) -> bool:
        return not self.inner.matches(facts)


@dataclass(frozen=True, slots=True)
class _Every:
    parts: tuple[Selector, ...]

    def matches(self, facts: Facts) -> bool:
        return all(part.matches(facts) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Any:
    parts: tuple[Selector, ...]

    def matches(self, facts: Facts) -> bool:
        return any(part.matches(facts) for part in self.parts)


def _shown(value: Json) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numeral(value: Json) -> str | None:
    """A number or a version as text; None when it is neither."""
    text = "" if isinstance(value, bool) or value is None else str(value)
    return text if _VERSION.fullmatch(text) else None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def facts_of(device_id: str, name: str, labels: Mapping[str, Json], capabilities: Mapping[str, Json]) -> Facts:
    """What selectors know of a device."""
    reported = {key: capabilities[key] for key in _REPORTED if key in capabilities}
    ram = capabilities.get("ram_bytes")
    if isinstance(ram, int):
        reported["ram_mb"] = ram >> 20
    if isinstance(capabilities.get("backends"), list):
        reported["backend"] = capabilities["backends"]
    return {**reported, **labels, "id": device_id, "name": name}


def keys_of(selector: Selector) -> frozenset[str]:
    """Every key that a selector asks for."""
    if isinstance(selector, _Not):
        return keys_of(selector.inner)
    if isinstance(selector, _Every | _Any):
        return frozenset().union(*map(keys_of, selector.parts))
    if isinstance(selector, _Has | _Equals | _Compares):
        return frozenset({selector.key})
    return frozenset()


@lru_cache(maxsize=512)
def parse(text: str) -> Selector:
    """Read a selector.

    Raises:
        BadRequestError: points at the first character that is wrong.
    """
    if len(text) > CHARACTERS_MAX:
        raise BadRequestError(f"selector: has {len(text)} characters, at most {CHARACTERS_MAX} are taken")
    if text.strip() == "all":
        return _All()
    return _Parser(text).read()


class _Token(NamedTuple):
    kind: str  # text, mark, word or end
    value: str
    at: int


class _Parser:
    """Recursive descent; the grammar stands at the top."""

    def __init__(self, text: str) -> None:
        self._text, self._place, self._terms = text, 0, 0
        self._tokens: list[_Token] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None:
                start = at + len(text[at:]) - len(text[at:].lstrip())
                raise self._wrong(start, "a mark that means nothing here, or a quote that is not closed")
            kind = str(found.lastgroup)
            self._tokens.append(_Token(kind, found[kind], found.start(kind)))
            at = found.end()
        self._tokens.append(_Token("end", "", len(text.rstrip())))

    def read(self) -> Selector:
        selector = self._either(0)
        if self._next.kind != "end":
            raise self._wrong(self._next.at, "expected `and`, `or` or the end")
        return selector

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next
        self._place += 1
        return token

    def _is(self, *values: str) -> bool:
        return self._next.kind in ("mark", "word") and self._next.value in values

    def _either(self, depth: int) -> Selector:
        parts = [self._both(depth)]
        while self._is("or"):
            self._take()
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else _Any(tuple(parts))

    def _both(self, depth: int) -> Selector:
        parts = [self._one(depth)]
        while self._is("and", ","):
            self._take()
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else _Every(tuple(parts))

    def _one(self, depth: int) -> Selector:
        if depth > DEPTH_MAX:
            raise self._wrong(self._next.at, f"nested deeper than {DEPTH_MAX}")
        if self._is("not"):
            self._take()
            return _Not(self._one(depth + 1))
        if self._is("("):
            self._take()
            inner = self._either(depth + 1)
            self._close()
            return inner
        return self._term()

    def _close(self) -> None:
        if not self._is(")"):
            raise self._wrong(self._next.at, "expected `)`")
        self._take()

    def _term(self) -> Selector:
        self._terms += 1
        if self._terms > TERMS_MAX:
            raise self._wrong(self._next.at, f"more than {TERMS_MAX} terms")
        key = self._take()
        if key.kind != "word" or not _KEY.fullmatch(key.value) or key.value in ("and", "or", "not", "in", "exists"):
            raise self._wrong(key.at, "expected `all` or a term such as site=berlin, ram_mb>=512 or (a=1 or b=2)")
        if self._is("in"):
            self._take()
            return _Equals(key.value, self._values())
        if self._is("exists"):
            self._take()
            return _Has(key.value)
        if not self._is("=", "!=", *_COMPARISONS):
            raise self._wrong(key.at, "expected `all` or a term such as site=berlin, ram_mb>=512 or site exists")
        mark = self._take()
        value = self._value()
        if mark.value in _COMPARISONS:
            if _numeral(value.value) is None:
                raise self._wrong(value.at, f"expected a number or a version after {mark.value}")
            return _Compares(key.value, mark.value, value.value)
        equals = _Equals(key.value, (value.value,))
        return equals if mark.value == "=" else _Not(equals)

    def _values(self) -> tuple[str, ...]:
        if not self._is("("):
            raise self._wrong(self._next.at, "expected ( and values with commas between")
        self._take()
        values = [self._value().value]
        while self._is(","):
            self._take()
            values.append(self._value().value)
        self._close()
        return tuple(values)

    def _value(self) -> _Token:
        token = self._take()
        if token.kind == "text":
            return token._replace(value=re.sub(r"\\(.)", r"\1", token.value[1:-1]))
        if token.kind != "word":
            raise self._wrong(token.at, "expected a value; one with blanks or marks stands in double quotes")
        return token

    def _wrong(self, at: int, why: str) -> BadRequestError:
        rest = self._text[at : at + 30].strip()
        return BadRequestError(f"selector: at character {at + 1}{f', {rest!r}' if rest else ''}: {why}")
