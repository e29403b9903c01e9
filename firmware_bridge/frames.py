"""Frames of the serial line: what stands between two zeros. What a payload means is for `messages.py`.

The loop is `tinylcm._ext.frame`; here are its parameters, its checks, and the arrays that it fills.

>>> decoder = Decoder()
>>> decoder.feed(encode(Frame(type=2, seq=7, payload=b"hello", flags=ACKREQ))[:6])
[]
>>> decoder.feed(encode(Frame(type=2, seq=7, payload=b"hello", flags=ACKREQ))[6:])
[Frame(type=2, seq=7, payload=b'hello', flags=1, version=1)]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.frame import PAYLOAD_BYTES_MAX as PAYLOAD_BYTES_MAX
from tinylcm._ext.frame import RUN_COLUMNS, FrameDecoder, SensorBlock
from tinylcm._ext.frame import encode as _encode

PROTOCOL_VERSION: Final = 1
"""The version of the protocol, which is not that of the software."""

ACKREQ: Final = 1
RESP: Final = 2
ERR: Final = 4

PIECE_BYTES_MAX: Final = 4096
"""So many bytes are decoded at a time: at least 32 on the wire a sensor frame, 2 a value, so a block of `ROWS_MAX`
rows and `RUNS_MAX` runs cannot overflow between two looks at it."""
ROWS_MAX: Final = 4096
RUNS_MAX: Final = 256


class Frame(NamedTuple):
    """One frame, its checksum right."""

    type: int
    seq: int
    payload: bytes
    flags: int = 0
    version: int = PROTOCOL_VERSION


class Run(NamedTuple):
    """Rows of one stream that follow on each other, and what is missing before them.

    Attributes:
        first: index of the first row, counted since the stream was started.
        values: [rows, channels].
        times_us: of each row, on the board's clock.
        frames_lost, rows_lost: what is missing between the row before and this first one.
    """

    first: int
    values: NDArray[np.float32]
    times_us: NDArray[np.int64]
    frames_lost: int
    rows_lost: int


class Block:
    """The rows of one stream between two looks.

    Args:
        channels: values a row.
        scale: one count in the stream's unit.
    """

    def __init__(self, channels: int, scale: float = 1.0, rows_max: int = ROWS_MAX) -> None:
        self._values = np.empty((rows_max, channels), np.float32)
        self._times = np.empty(rows_max, np.int64)
        self._runs = np.empty((RUNS_MAX, RUN_COLUMNS), np.int64)
        self.core = SensorBlock(self._values, self._times, self._runs, scale)

    def take(self) -> list[Run]:
        """The rows that came since the last call, copied out."""
        core = self.core
        if not core.rows:
            return []
        lines = self._runs[: core.runs].tolist()
        ends = [line[0] for line in lines[1:]] + [core.rows]
        runs = [
            Run(first, self._values[start:end].copy(), self._times[start:end].copy(), frames, rows)
            for (start, first, frames, rows), end in zip(lines, ends, strict=True)
        ]
        core.clear()
        return runs


class Decoder:
    """Frames out of bytes that come in any pieces; rows of bound streams go to their blocks.

    Args:
        payload_max: frames with a longer payload are dropped and counted.
    """

    def __init__(self, payload_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._core = FrameDecoder(payload_max)

    @property
    def frames(self) -> int:
        """Whole frames so far."""
        return self._core.frames

    @property
    def bad(self) -> int:
        """Frames that were damaged or longer than agreed."""
        return self._core.bad + self._core.too_long

    @property
    def too_long(self) -> int:
        """Frames that were longer than agreed."""
        return self._core.too_long

    def bind(self, stream: int, block: Block | None) -> None:
        """Send the rows of a stream to a block; None ends it."""
        self._core.bind(stream, None if block is None else block.core)

    def reset(self) -> None:
        """Forget the frame that has begun."""
        self._core.reset()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that end within these bytes, at most `PIECE_BYTES_MAX` when streams are bound."""
        return [
            Frame(kind, seq, payload, first & 15, first >> 4) for first, kind, seq, payload in self._core.feed(data)
        ]


def pieces(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """The bytes in pieces that no block overflows from."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES_MAX):
        yield view[start : start + PIECE_BYTES_MAX]


def encode(frame: Frame) -> bytes:
    """The bytes of a frame, zeros around it.

    Raises:
        ValueError: the payload is longer than a frame takes, or a number is out of range.
    """
    return _encode(frame.type, frame.seq, frame.payload, frame.flags, frame.version)
