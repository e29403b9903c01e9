"""If-Match: a change is made to what its author has seen, or not at all (RFC 9110, 13.1.1).

A change of what is there needs the header; `*` takes whatever is there. What is made new needs none. Removing, and what
can happen once and in one direction alone (aborting, revoking, retiring), takes the header and does not need it.
"""

from __future__ import annotations

import hashlib
from typing import Final

from .errors import PreconditionFailedError, PreconditionRequiredError

ANY: Final = "*"


def tag_of(*parts: object) -> str:
    """The ETag of something, from all that may change of it."""
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"'


def check_match(if_match: str | None, current: str | None, what: str, *, needed: bool = True) -> None:
    """Refuse a change of something else than its author has seen.

    Args:
        if_match: the header, or None.
        current: the ETag of what is there, or None when nothing is.
        what: of what, for the message.
        needed: whether the header may be missing when something is there.

    Raises:
        PreconditionRequiredError: it is missing.
        PreconditionFailedError: what is there has changed since, or has gone.
    """
    if if_match == ANY or (if_match is not None and current is not None and current in _listed(if_match)):
        return
    if if_match is not None:
        now = "there is none" if current is None else f"it is now at {current}"
        raise PreconditionFailedError(f"{what}: {now}, the request changes {if_match:.80}; read it again")
    if current is not None and needed:
        raise PreconditionRequiredError(f"{what} is there: send If-Match with its ETag, so that no change is lost")


def _listed(if_match: str) -> list[str]:
    return [tag.strip() for tag in if_match.split(",")]
