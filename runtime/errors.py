"""The errors of TinyLCM, split by whose fault they are.

Each message says what happened, what was expected and got, and what to do. A caller that wants all of them
catches `TinyLCMError`; anything else that escapes the library is a bug.
"""

from __future__ import annotations


class TinyLCMError(Exception):
    """Base of every error that TinyLCM raises on purpose."""


class ConfigError(TinyLCMError):
    """The application or its configuration asks for something that cannot be."""


class InputError(TinyLCMError, ValueError):
    """Data given to a model does not fit it: shape, dtype, NaN or infinity. Nothing was changed by it."""


class ModelError(TinyLCMError):
    """A model or a model package is wrong: damaged, unsigned, untrusted, or not runnable here."""


class DeviceError(TinyLCMError):
    """This machine is at fault: no space, no permission, a failing disk."""


class JournalFullError(DeviceError):
    """The journal's budget for events is used up; nothing that was journalled is lost."""


class WireError(TinyLCMError):
    """A message from a peer does not keep the protocol."""


class ServerError(TinyLCMError):
    """The server could not be reached, or refused.

    Args:
        message: what happened and what to do.
        retry_after_s: how long the server asked to wait, in seconds, or None.
        permanent: True when asking again unchanged cannot succeed (a revoked key, a refused token).
        status: of the answer, 0 when there was none.
        spoken: the oldest and the newest version of the wire that it speaks, when that is why it refused.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        permanent: bool = False,
        status: int = 0,
        spoken: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.spoken = spoken
        self.status = status
        self.retry_after_s = retry_after_s
        self.permanent = permanent
