"""gzip of a body, and back with a bound.

A few kilobytes of gzip can hold gigabytes, so nothing is expanded further than its bound. The header carries no time:
the same body always gives the same bytes.
"""

from __future__ import annotations

import zlib
from typing import Final

from ..errors import WireError

GZIP_BYTES_MIN: Final = 1024  # a smaller body fits into one packet anyway
GZIP_SHARE_MAX: Final = 0.9  # of the plain body's size; beyond it the receiver's work is not worth it
# Of level 6 the sizes are 2 % to 5 % smaller and the time is three times as long (benchmarks/test_wire.py).
_LEVEL: Final = 1
_GZIP: Final = 31  # zlib's number for: 32 KiB window, gzip's header and no other


class ExpansionError(WireError):
    """A compressed body holds more than is taken."""


def compress(body: bytes) -> bytes | None:
    """The body as gzip, or None when that does not help."""
    if len(body) < GZIP_BYTES_MIN:
        return None
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    packed = packer.compress(body) + packer.flush()
    return packed if len(packed) <= len(body) * GZIP_SHARE_MAX else None


def expand(body: bytes, bytes_max: int) -> bytes:
    """What a gzip body holds, at most `bytes_max` bytes.

    Raises:
        ExpansionError: it holds more.
        WireError: it is no gzip, is cut off, or something follows it.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        plain = unpacker.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise WireError(f"the body is not the gzip that its Content-Encoding says: {error}") from error
    if len(plain) > bytes_max:
        raise ExpansionError(f"the body expands to more than the {bytes_max} bytes taken here; send fewer records")
    if not unpacker.eof:
        raise WireError("the gzip of the body ends early; send it again")
    if unpacker.unused_data:
        raise WireError(f"{len(unpacker.unused_data)} bytes follow the gzip of the body, expected none")
    return plain
