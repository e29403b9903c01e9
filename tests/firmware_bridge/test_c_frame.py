"""Frames in C: byte for byte those of a second reading of docs/wire.md, and nothing damaged is taken for whole."""

from __future__ import annotations

import ctypes
import hashlib
import random
import zlib

import hypothesis.strategies as st
import pytest
from c_board import CReader, c_encode, library
from hypothesis import example, given, settings
from line_reference import Frame, Reader, encode

PAYLOADS = st.one_of(
    st.binary(max_size=1024),
    st.lists(st.sampled_from([0, 1, 254, 255]), max_size=1024).map(bytes),
    st.integers(240, 270).map(lambda n: b"\x01" * n),
)
FRAMES = st.builds(Frame, st.integers(0, 15), st.integers(0, 255), st.integers(0, 65535), PAYLOADS)


@given(FRAMES, st.integers(0, 2999))
@example(Frame(1, 2, 3, b"\x01" * 246), 0)  # the body ends with a full block of 254
@settings(max_examples=400, deadline=None)
def test_a_frame_is_the_same_bytes_and_comes_back(frame: Frame, start: int) -> None:
    encoded = c_encode(frame, 3000, start)
    assert isinstance(encoded, bytes)
    assert Reader().feed(encoded) == [frame]
    assert len(encoded) <= library().frame_size_max(len(frame.payload))
    reader = CReader()
    assert reader.feed(encoded) == reader.feed(encode(frame)) == [frame]
    assert reader.bad == 0
    reader.close()


def test_the_worst_case_of_the_macro_is_reached() -> None:
    worst = {n: max(len(c_encode(Frame(0, 1, 0x0101, b"\x01" * n))) for _ in range(1)) for n in (0, 245, 246, 247, 500)}
    for n, size in worst.items():
        assert size <= library().frame_size_max(n) <= size + 1


@pytest.mark.parametrize("room", range(40))
def test_a_frame_that_does_not_fit_leaves_the_ring_as_it_was(room: int) -> None:
    frame = Frame(1, 2, 3, b"0123456789abcdef")
    whole = c_encode(frame)
    assert isinstance(whole, bytes)
    told = c_encode(frame, room + 1, start=room // 2)
    assert told == whole if room >= len(whole) else told == -2
    assert c_encode(frame, 64, reserve=63 - room) == (whole if room >= len(whole) else -2)


def test_every_flipped_bit_and_every_lost_or_doubled_byte_is_noticed() -> None:
    frame = Frame(1, 0x31, 77, bytes(range(40)) + b"\0\0\xff")
    whole = encode(frame)
    after = Frame(0, 9, 9, b"next")
    for at in range(1, len(whole) - 1):
        damaged = [whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for bit in range(8)]
        damaged += [whole[:at] + whole[at + 1 :], whole[:at] + whole[at : at + 1] + whole[at:]]
        for data in damaged:
            reader = CReader()
            assert reader.feed(data + encode(after)) == [after], (at, data)
            assert reader.bad >= 1
            reader.close()


def test_two_readings_agree_on_a_million_bytes_of_anything() -> None:
    rng = random.Random(20)
    stream = bytearray()
    while len(stream) < 1_000_000:
        whole = encode(
            Frame(rng.randrange(16), rng.randrange(256), rng.randrange(65536), rng.randbytes(rng.randrange(90)))
        )
        if rng.random() < 0.5:
            at = rng.randrange(len(whole))
            whole = rng.choice(
                [
                    whole[:at] + rng.randbytes(1) + whole[at + 1 :], whole[:at] + whole[at + 1 :],
                    whole[:at] + b"\0" + whole[at:], rng.randbytes(40), whole[:at],
                ]
            )  # fmt: skip
        stream += whole
    ours, theirs = CReader(200), Reader(200)
    at = 0
    while at < len(stream):
        part = bytes(stream[at : at + rng.randrange(1, 5000)])
        assert ours.feed(part) == theirs.feed(part)
        at += len(part)
    assert ours.bad == theirs.bad > 1000
    ours.close()


def test_a_frame_longer_than_agreed_is_dropped_and_the_next_one_read() -> None:
    reader = CReader(64)
    assert reader.feed(encode(Frame(0, 1, 1, bytes(65))) + encode(Frame(0, 1, 2, bytes(64)))) == [
        Frame(0, 1, 2, bytes(64))
    ]
    assert reader.bad == 1
    assert reader.feed(b"\0\0\0" + b"\x01" * 100_000 + b"\0" + encode(Frame(0, 1, 3))) == [Frame(0, 1, 3)]
    assert reader.bad == 2
    reader.close()


def test_a_decoder_without_room_for_the_least_payload_is_refused() -> None:
    assert library().reader_new(63) is None


@given(st.binary(max_size=300), st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_crc_and_sha_are_the_usual_ones_however_the_bytes_come(data: bytes, part: int) -> None:
    out = (ctypes.c_uint8 * 32)()
    library().sha256_of(data, len(data), part, out)
    assert bytes(out) == hashlib.sha256(data).digest()
    assert library().crc32_of(data, len(data), part) == zlib.crc32(data)
