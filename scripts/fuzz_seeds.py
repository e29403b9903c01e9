"""Write the inputs that fuzzing the C library begins with: whole updates, streams, models of both kinds, stores.

python scripts/fuzz_seeds.py FOLDER
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from board_oracle import random_network, random_trees
from line_reference import (
    ABORT,
    ACKREQ,
    BEGIN,
    CHUNK,
    COMMIT,
    CONFIRM,
    DRIFT,
    HELLO,
    METRICS,
    RESET,
    RESP,
    ROLLBACK,
    STREAM,
    TIME,
    Frame,
    encode,
)

RAW, FRAMED, MODEL, VALUES, STORE = range(5)


def asked(kind: int, seq: int, payload: bytes = b"", flags: int = ACKREQ) -> Frame:
    """A request."""
    return Frame(flags, kind, seq, payload)


def update(model: bytes) -> list[Frame]:
    """A whole update, with a stream beside it."""
    digest = hashlib.sha256(model).digest()
    frames = [
        asked(HELLO, 1, struct.pack("<BBHI", 1, 1, 512, 9)),
        asked(TIME, 2, bytes(8)),
        asked(STREAM, 3, struct.pack("<BBI", 255, 1, 0xFFFFFFFF)),
        asked(BEGIN, 4, struct.pack("<I32sHH", len(model), digest, 1, 1)),
    ]
    for at in range(0, len(model), 240):
        frames.append(asked(CHUNK, 5 + at // 240, struct.pack("<I", at) + model[at : at + 240]))
    frames += [asked(COMMIT, 90, digest), asked(CONFIRM, 91, digest), asked(METRICS, 92)]
    frames += [asked(DRIFT, 0, b"", RESP), asked(ROLLBACK, 93), asked(ABORT, 94), asked(RESET, 95, b"\0")]
    return frames


def framed(frames: list[Frame]) -> bytes:
    """Frames as the target reads them, without their CRC."""
    return b"".join(
        struct.pack("<BBHB", frame.flags, frame.type, frame.seq, len(frame.payload)) + frame.payload for frame in frames
    )


def store(model: bytes) -> bytes:
    """A slot that holds a confirmed model."""
    head = struct.pack("<4sI32sHHI12x", b"TBS1", len(model), hashlib.sha256(model).digest(), 1, 1, 1)
    mark = b"\xa5" * 16
    return head + struct.pack("<I", zlib.crc32(head)) + mark + mark + mark + b"\xff" * 16 + model


def main() -> None:
    """One file an input."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    small = [
        random_trees(1, trees=1, depth=1, features=2, classes=2, rows=4, vectors=1),
        random_trees(2, trees=2, depth=2, features=3, classes=3, vectors=1),
        random_network(3, (3, 4, 2), rows=4, vectors=1),
    ]
    inputs = [bytes([FRAMED, fails]) + framed(update(model)) for model in small for fails in (0, 7, 31)]
    inputs += [bytes([RAW]) + b"".join(map(encode, update(model))) for model in small]
    inputs += [bytes([MODEL]) + model for model in (*small, random_network(4, (6, 8, 4, 3), vectors=1))]
    inputs += [bytes([STORE]) + store(model) for model in small]
    inputs += [
        bytes([VALUES]) + struct.pack("<iiHBx", 100, 10**6, 3, 4) + struct.pack("<40i", *range(0, 4 * 10**6, 10**5))
    ]
    for number, data in enumerate(inputs):
        (folder / f"seed-{number:02d}").write_bytes(data)
    print(f"{folder}: {len(inputs)} seeds")


if __name__ == "__main__":
    main()
