"""Who follows what happens, in this process: places that are taken and given back, bounded all together and each."""

from __future__ import annotations

from .errors import BusyError, TooManyRequestsError


class Followers:
    """The places.

    Args:
        most: of all.
        most_each: of one person.

    One thread uses it: the event loop's.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._each: dict[str, int] = {}

    @property
    def count(self) -> int:
        """Streams that are open."""
        return sum(self._each.values())

    def enter(self, who: str) -> None:
        """Take a place.

        Raises:
            TooManyRequestsError: this one follows often enough.
            BusyError: all places are taken.
        """
        if self._each.get(who, 0) >= self._most_each:
            raise TooManyRequestsError(f"you follow {self._most_each} times already; end one first", retry_after_s=5)
        if self.count >= self._most:
            raise BusyError(f"{self._most} others follow already; try again", retry_after_s=30)
        self._each[who] = self._each.get(who, 0) + 1

    def leave(self, who: str) -> None:
        """Give the place back."""
        self._each[who] -= 1
        if not self._each[who]:
            del self._each[who]
