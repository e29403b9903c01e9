"""What boards say and run: a CAPS, and small models written byte by byte from docs/wire.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from firmware_bridge import messages as m
from firmware_bridge.slots import Slots

Node = tuple[int, int, int, int]

CAPS = m.Caps(
    uid="A1", boot=7, fw="1.0", frame_max=512, window=4, slots=2, slot_bytes=8192, align=8, abi=1, formats=(1,),
    reset="power", trial_s=30, sensors=(m.Sensor(0, "imu", m.I16, ("x", "y"), 50_000, "g", 0.5),),
    model=m.RunningModel("ab" * 32, 1, m.CONFIRMED, 3),
)  # fmt: skip


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def board_model(
    kind: int,
    body: bytes,
    features: Sequence[tuple[int, int, int, float, float]],
    *,
    classes: int = 2,
    rows: int = 10,
    hop: int = 10,
    channels: int = 3,
    vectors: Sequence[tuple[Sequence[int], int, int]] = (),
    abi: int = 1,
) -> bytes:
    described = b"".join(struct.pack("<BBHff", *feature) for feature in features)
    body = _padded(body)
    tests = struct.pack("<HH", len(vectors), 0) + b"".join(
        _padded(struct.pack(f"<{len(values)}h", *values)) + struct.pack("<HH", label, score)
        for values, label, score in vectors
    )
    at = 36
    places = (at, at + len(described), at + len(described) + len(body) if vectors else 0)
    size = at + len(described) + len(body) + (len(tests) if vectors else 0)
    head = struct.pack(
        "<4sIHBBHHHBBIIII", b"TBM1", size, abi, kind, classes, len(features), rows, hop, channels, 0, *places, 0
    )
    return head + described + body + (tests if vectors else b"")


def trees(first: Sequence[int], nodes: Sequence[Node], leaves: Sequence[Sequence[int]]) -> bytes:
    return (
        struct.pack("<HHI", len(first), len(leaves), len(nodes))
        + struct.pack(f"<{len(first)}I", *first)
        + b"".join(struct.pack("<hhHH", *node) for node in nodes)
        + _padded(b"".join(struct.pack(f"<{len(leaf)}H", *leaf) for leaf in leaves))
    )


def threshold_model(threshold: int = 0, *, filler: int = 0, vectors: bool = True) -> bytes:
    """Class 1 when the mean of channel 0 is over a threshold; `filler` nodes that nobody reaches make it larger."""
    nodes: list[Node] = [(0, threshold, 1, 2), (-1, 0, 0, 0), (-1, 0, 1, 0)]
    nodes += [(-1, 0, i % 2, 0) for i in range(filler)]
    body = trees([0], nodes, [(60000, 5535), (5535, 60000)])
    tests = [((threshold,), 0, 60000), ((threshold + 1,), 1, 60000)] if vectors else []
    return board_model(1, body, [(1, 0, 0, 0.0, 1.0)], vectors=tests)


def begin_of(blob: bytes) -> m.BeginRequest:
    return m.BeginRequest(len(blob), hashlib.sha256(blob).digest(), 1, 1)


def install(slots: Slots, blob: bytes, *, confirm: bool = True) -> None:
    """Put a model into a slot, as a board does it."""
    _, offset = slots.begin(begin_of(blob))
    while offset < len(blob):
        offset = slots.chunk(offset, blob[offset : offset + 64])
    slots.arrived(hashlib.sha256(blob).digest())
    slots.try_out()
    if confirm:
        slots.confirm()
