"""The errors of the firmware bridge, split by whose fault it is: the port, the peer, or what was asked of it.

Whoever wants all of them catches `BridgeError`, which is a `TinyLCMError`; anything else that escapes is a bug.
"""

from __future__ import annotations

from typing import Final

from tinylcm.errors import TinyLCMError


class BridgeError(TinyLCMError):
    """Base of every error that the bridge raises on purpose."""


class LinkError(BridgeError):
    """The port: not there, not permitted, in use, or it broke off."""


class MessageError(BridgeError):
    """A frame was whole, but what it says does not keep the protocol."""


class NoAnswerError(BridgeError):
    """The board did not answer, however often it was asked."""


class UpdateError(BridgeError):
    """A model did not get onto the board; what ran before runs on."""


ERROR_NAMES: Final = {
    1: "TYPE",
    2: "PAYLOAD",
    3: "VERSION",
    4: "STATE",
    5: "SIZE",
    6: "HASH",
    7: "MODEL",
    8: "STORE",
    9: "SELFTEST",
    10: "BUSY",
}
TYPE, PAYLOAD, VERSION, STATE, SIZE, HASH, MODEL, STORE, SELFTEST, BUSY = range(1, 11)


class RefusedError(BridgeError):
    """The board answered with `ERR`.

    Args:
        asked: the request's name.
        code: the board's number for it, see `ERROR_NAMES`.
        text: the board's own words.
    """

    def __init__(self, asked: str, code: int, text: str) -> None:
        name = ERROR_NAMES.get(code, f"code {code}")
        super().__init__(f"the board refused {asked}: {name}{f' ({text})' if text else ''}")
        self.code = code
        self.text = text
