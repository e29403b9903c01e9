"""Changes of what has been seen."""

from __future__ import annotations

import pytest
from tinysphere.errors import PreconditionFailedError, PreconditionRequiredError
from tinysphere.preconditions import check_match, tag_of


def test_a_tag_changes_with_whatever_it_is_of() -> None:
    tags = {tag_of("a", 1), tag_of("a", 2), tag_of("b", 1), tag_of("a1", "")}
    assert len(tags) == 4 and all(tag[0] == tag[-1] == '"' and len(tag) == 18 for tag in tags)
    assert tag_of("a", 1) == tag_of("a", 1)


def test_what_was_seen_may_be_changed_and_nothing_else() -> None:
    check_match('"1"', '"1"', "it")
    check_match('"0", "1"', '"1"', "it")
    check_match("*", '"1"', "it")
    check_match(None, None, "it")
    check_match(None, '"1"', "it", needed=False)
    with pytest.raises(PreconditionRequiredError, match="it is there: send"):
        check_match(None, '"1"', "it")
    for needed in (True, False):
        with pytest.raises(PreconditionFailedError, match='is now at "2", the request changes "1"'):
            check_match('"1"', '"2"', "it", needed=needed)
        with pytest.raises(PreconditionFailedError, match="there is none"):
            check_match('"1"', None, "it", needed=needed)
