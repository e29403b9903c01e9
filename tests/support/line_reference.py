"""The serial line's frames, read a second time from docs/wire.md: slow, plain, and apart from both implementations."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

ACKREQ, RESP, ERR = 1, 2, 4
HELLO, TIME, SENSOR, RESULT, STREAM = 0x01, 0x02, 0x10, 0x11, 0x12
METRICS, DRIFT, LOG, RESET = 0x20, 0x21, 0x40, 0x41
BEGIN, CHUNK, COMMIT, CONFIRM, ABORT, ROLLBACK = 0x30, 0x31, 0x32, 0x33, 0x34, 0x35


@dataclass(frozen=True)
class Frame:
    """A frame's body without its CRC."""

    flags: int
    type: int
    seq: int
    payload: bytes = b""
    version: int = 1


def cobs(data: bytes) -> bytes:
    """Blocks that end before each zero, or after 254 other bytes."""
    blocks, block = [], bytearray()
    for byte in data:
        if len(block) == 254:
            blocks.append(b"\xff" + block)
            block = bytearray()
        if byte == 0:
            blocks.append(bytes([len(block) + 1]) + block)
            block = bytearray()
        else:
            block.append(byte)
    blocks.append(bytes([len(block) + 1]) + block)
    return b"".join(blocks)


def uncobs(data: bytes) -> bytes | None:
    """The bytes again, or None where a block is cut short."""
    out, at = bytearray(), 0
    while at < len(data):
        code = data[at]
        if code == 0 or at + code > len(data):
            return None
        out += data[at + 1 : at + code]
        at += code
        if code < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def encode(frame: Frame) -> bytes:
    """A frame with its two zeros."""
    body = struct.pack("<BBH", frame.version << 4 | frame.flags, frame.type, frame.seq) + frame.payload
    return b"\0" + cobs(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def decode(body: bytes, payload_max: int = 1024) -> Frame | None:
    """What stands between two zeros, or None where COBS, CRC or length is wrong."""
    data = uncobs(body)
    if data is None or not 8 <= len(data) <= payload_max + 8:
        return None
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    return Frame(data[0] & 15, data[1], int.from_bytes(data[2:4], "little"), data[4:-4], data[0] >> 4)


class Reader:
    """Bytes in, frames out; damaged ones are counted."""

    def __init__(self, payload_max: int = 1024) -> None:
        self.payload_max = payload_max
        self.bad = 0
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes completed."""
        *bodies, self._rest = (self._rest + data).split(b"\0")
        frames = []
        for body in filter(None, bodies):
            frame = decode(body, self.payload_max)
            if frame is None:
                self.bad += 1
            else:
                frames.append(frame)
        return frames
