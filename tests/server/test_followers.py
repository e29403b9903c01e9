"""Places of those who follow."""

from __future__ import annotations

import pytest
from tinysphere.errors import BusyError, TooManyRequestsError
from tinysphere.followers import Followers


def test_places_are_bounded_and_given_back() -> None:
    followers = Followers(3, 2)
    followers.enter("ada")
    followers.enter("ada")
    with pytest.raises(TooManyRequestsError, match="2 times already"):
        followers.enter("ada")
    followers.enter("bob")
    with pytest.raises(BusyError, match="3 others"):
        followers.enter("eve")
    assert followers.count == 3
    followers.leave("ada")
    followers.enter("eve")
    for who in ("ada", "bob", "eve"):
        followers.leave(who)
    assert followers.count == 0
