"""Reading untrusted or hand-written mappings: each field is checked once, and an error names its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from .errors import TinyLCMError

INTEGER_MAX: Final = (1 << 63) - 1
MISSING: Final = object()
_T = TypeVar("_T")


def is_utf8(value: str) -> bool:
    """True when the text can be stored and sent; JSON's escapes can make one that cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """A mapping whose fields are read with their type, range and place in the document.

    Args:
        value: what was parsed; anything but a mapping is an error.
        where: the place, such as `request.anchor`, that messages begin with.
        error: the class to raise: whose fault a wrong field is.
    """

    def __init__(self, value: object, where: str, error: type[TinyLCMError]) -> None:
        self.where = where
        self._error = error
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected a table of fields, got {type(value).__name__}")
        self.value: Mapping[str, object] = value

    def fail(self, key: str, problem: str) -> TinyLCMError:
        """The error for a field, for checks that only the caller can make."""
        return self._error(f"{self.where}.{key}: {problem}")

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def typed(self, key: str, kind: type[_T], default: object = MISSING) -> _T:
        """A field of exactly this type (a bool is no int)."""
        value = self.value.get(key, default)
        if value is MISSING:
            raise self.fail(key, f"is missing; expected {kind.__name__}")
        if type(value) is not kind:
            raise self.fail(key, f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    def text(self, key: str, default: object = MISSING, *, length_max: int = 200, length_min: int = 0) -> str:
        """A string of bounded length."""
        value = self.typed(key, str, default)
        if not length_min <= len(value) <= length_max:
            raise self.fail(key, f"has {len(value)} characters, expected {length_min} to {length_max}")
        if not is_utf8(value):
            raise self.fail(key, "holds half a surrogate pair, which no UTF-8 text can")
        if "\0" in value:
            raise self.fail(key, "holds a NUL character, which no file name and no database takes")
        return value

    def natural(self, key: str, default: object = MISSING, *, low: int = 0, high: int = INTEGER_MAX) -> int:
        """An integer within bounds, 0 to 2**63 - 1 unless told."""
        value = self.typed(key, int, default)
        if not low <= value <= high:
            raise self.fail(key, f"is {value}, expected {low} to {high}")
        return value

    def number(self, key: str, default: object = MISSING, *, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number within bounds; an integer counts."""
        value = self.value.get(key, default)
        if value is MISSING:
            raise self.fail(key, "is missing; expected a number")
        if type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        if type(value) is not float or not math.isfinite(value):
            raise self.fail(key, f"expected a finite number, got {value!r:.40}")
        if not low <= value <= high:
            raise self.fail(key, f"is {value:g}, expected {low:g} to {high:g}")
        return value

    def numbers(self, key: str, *, length_max: int = 100_000) -> tuple[float, ...]:
        """A list of finite numbers."""
        items = self.items(key, length_max=length_max)
        fields = Fields({str(i): item for i, item in enumerate(items)}, f"{self.where}.{key}", self._error)
        return tuple(fields.number(str(i)) for i in range(len(items)))

    def texts(self, key: str, default: object = MISSING, *, length_max: int = 10_000) -> tuple[str, ...]:
        """A list of strings."""
        items = self.items(key, default, length_max=length_max)
        for index, item in enumerate(items):
            if type(item) is not str or len(item) > 200 or not is_utf8(item) or "\0" in item:
                raise self.fail(f"{key}[{index}]", "expected a string of at most 200 characters")
        return tuple(str(item) for item in items)

    def items(self, key: str, default: object = MISSING, *, length_max: int = 10_000) -> list[object]:
        """A list of bounded length, its items unchecked."""
        value = self.value.get(key, default)
        if value is MISSING:
            raise self.fail(key, "is missing; expected a list")
        if not isinstance(value, list):
            raise self.fail(key, f"expected a list, got {type(value).__name__}")
        if len(value) > length_max:
            raise self.fail(key, f"has {len(value)} items, at most {length_max} are taken")
        return value

    def tables(self, key: str, default: object = MISSING, *, length_max: int = 1000) -> Iterator[Fields]:
        """A list of mappings."""
        for index, item in enumerate(self.items(key, default, length_max=length_max)):
            yield Fields(item, f"{self.where}.{key}[{index}]", self._error)

    def table(self, key: str, default: object = MISSING) -> Fields:
        """A mapping inside this one."""
        value = self.value.get(key, default)
        if value is MISSING:
            raise self.fail(key, "is missing; expected a table of fields")
        return Fields(value, f"{self.where}.{key}", self._error)

    def refuse_unknown(self, *known: str) -> None:
        """For documents that people write: a misspelt key is an error, not silence."""
        for key in self.value:
            if key not in known:
                raise self.fail(key, f"is not known here; known: {', '.join(known)}")
