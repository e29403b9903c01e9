"""The errors of TinySphere and, in one table, the HTTP status and problem type that each becomes (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tinylcm.errors import ModelError, TinyLCMError, WireError
from tinylcm.wire import ExpansionError, WireVersionError


class TinySphereError(Exception):
    """Base of every error that TinySphere raises on purpose.

    Args:
        message: what happened, expected and got, what to do; it is sent to the peer, so it holds no secret.
        retry_after_s: when asking again can help, in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadRequestError(TinySphereError):
    """The request cannot be read: no JSON, a wrong selector, a wrong cursor."""


class InvalidError(TinySphereError):
    """The request can be read, but a field of it is wrong."""


class UnauthorizedError(TinySphereError):
    """Nobody is signed in, or the key is not known."""


class ForbiddenError(TinySphereError):
    """The caller is known and may not do this."""


class NotFoundError(TinySphereError):
    """There is no such thing."""


class MethodNotAllowedError(TinySphereError):
    """The address exists, this method does not."""


class ConflictError(TinySphereError):
    """The change contradicts what is stored."""


class PreconditionFailedError(TinySphereError):
    """Somebody else changed it first: the If-Match of the request is out of date."""


class PreconditionRequiredError(TinySphereError):
    """A change of this needs an If-Match header."""


class TooLargeError(TinySphereError):
    """The body is larger than this address takes."""


class TooManyRequestsError(TinySphereError):
    """The caller asks too often."""


class RangeNotSatisfiableError(TinySphereError):
    """The part that was asked for is not in the file, which has `size` bytes."""

    def __init__(self, message: str, *, size: int = 0) -> None:
        super().__init__(message)
        self.size = size


class UnsupportedMediaTypeError(TinySphereError):
    """The body is of a format or a compression that this address does not take."""


class BusyError(TinySphereError):
    """The server has too much to do; nothing was changed, try again."""


class StorageError(TinySphereError):
    """The disk is full or failing; nothing was stored."""


class StartError(TinySphereError):
    """The server cannot start as it was told to."""


@dataclass(frozen=True, slots=True)
class Problem:
    """How an error class is answered."""

    status: int
    slug: str
    title: str


PROBLEMS: Final[Mapping[type[Exception], Problem]] = {
    BadRequestError: Problem(400, "bad-request", "The request cannot be read"),
    WireError: Problem(400, "wire", "The message does not keep the protocol"),
    WireVersionError: Problem(400, "wire-version", "This version of the protocol is not spoken here"),
    UnauthorizedError: Problem(401, "unauthorized", "A valid key is needed"),
    ForbiddenError: Problem(403, "forbidden", "Not allowed"),
    NotFoundError: Problem(404, "not-found", "There is no such thing"),
    MethodNotAllowedError: Problem(405, "method-not-allowed", "The method is not offered here"),
    ConflictError: Problem(409, "conflict", "It contradicts what is stored"),
    PreconditionFailedError: Problem(412, "precondition-failed", "Somebody else changed it first"),
    TooLargeError: Problem(413, "too-large", "The body is too large"),
    ExpansionError: Problem(413, "too-large", "The body is too large"),
    UnsupportedMediaTypeError: Problem(415, "unsupported-media-type", "The body's format is not taken here"),
    RangeNotSatisfiableError: Problem(416, "range-not-satisfiable", "The range is not within the file"),
    InvalidError: Problem(422, "invalid", "A field is wrong"),
    ModelError: Problem(422, "package", "The package is refused"),
    PreconditionRequiredError: Problem(428, "precondition-required", "An If-Match header is needed"),
    TooManyRequestsError: Problem(429, "too-many-requests", "Asked too often"),
    BusyError: Problem(503, "busy", "The server is busy"),
    StorageError: Problem(507, "storage", "The server cannot store it"),
    TinyLCMError: Problem(500, "internal", "The server is at fault"),
    TinySphereError: Problem(500, "internal", "The server is at fault"),
}
UNEXPECTED: Final = Problem(500, "internal", "The server is at fault")


def problem_of(error: Exception) -> Problem:
    """The row of the table for an error: of its own class or of the nearest parent."""
    for kind in type(error).__mro__:
        found = PROBLEMS.get(kind) if issubclass(kind, Exception) else None
        if found is not None:
            return found
    return UNEXPECTED
