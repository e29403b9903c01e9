"""Broken copies of bytes, by a seed: what a bad disk, a bad network and a bad neighbour make of a file."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

NAMES = ("flip", "flips", "truncate", "extend", "splice", "zero", "length", "swap", "delete", "repeat")


def mutants(data: bytes, others: list[bytes], *, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many broken copies, each with the name of what was done; none equals the original.

    Args:
        data: the original, at least 16 bytes.
        others: files of the same kind, for splices.
        count: how many.
        seed: the same one gives the same copies.
    """
    rng = random.Random(seed)
    made = 0
    while made < count:
        name = NAMES[made % len(NAMES)]
        changed = _mutate(name, data, others, rng)
        if changed != data:
            made += 1
            yield name, changed


def _mutate(name: str, data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    length = min(rng.choice((1, 4, 16, 64, 512)), len(data) - place)
    changed = bytearray(data)
    if name == "flip":
        changed[place] ^= 1 << rng.randrange(8)
    elif name == "flips":
        for _ in range(rng.randrange(2, 64)):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif name == "truncate":
        del changed[place:]
    elif name == "extend":
        changed += rng.randbytes(length)
    elif name == "splice":
        other = rng.choice(others)
        at = rng.randrange(len(other))
        changed = bytearray(data[:place] + other[at:])
    elif name == "zero":
        changed[place : place + length] = bytes(length)
    elif name == "length":
        place = min(place, len(data) - 4)
        value = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(data), len(data) * 2, rng.getrandbits(32)))
        struct.pack_into("<I", changed, place if rng.random() < 0.5 else rng.choice((8, 12)), value)
    elif name == "swap":
        at = rng.randrange(len(data))
        changed[place : place + length], changed[at : at + length] = (
            data[at : at + length],
            data[place : place + length],
        )
    elif name == "delete":
        del changed[place : place + length]
    else:
        changed[place:place] = data[place : place + length]
    return bytes(changed)
