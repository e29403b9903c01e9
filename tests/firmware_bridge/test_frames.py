"""Frames: whole ones come out whatever the pieces, damaged ones never; rows go to their block, gaps counted exactly."""

from __future__ import annotations

import doctest
import random
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serial_wire import Faults

from firmware_bridge import frames
from firmware_bridge.frames import ACKREQ, PAYLOAD_BYTES_MAX, PIECE_BYTES_MAX, Block, Decoder, Frame, encode, pieces
from firmware_bridge.messages import SensorRows


def cobs(body: bytes) -> bytes:
    """COBS as the paper tells it: the oracle."""
    out = b""
    for part in (body + b"\0").split(b"\0")[:-1]:
        while len(part) >= 254:
            out += b"\xff" + part[:254]
            part = part[254:]
        out += bytes([len(part) + 1]) + part
    return out


def written(kind: int, seq: int, payload: bytes, flags: int = 0) -> bytes:
    body = bytes([0x10 | flags, kind]) + seq.to_bytes(2, "little") + payload
    return b"\0" + cobs(body + zlib.crc32(body).to_bytes(4, "little")) + b"\0"


def sensor(seq: int, index: int, rows: int = 4, channels: int = 3, stream: int = 0) -> bytes:
    values = (np.arange(rows * channels, dtype=np.int16) + index % 1000).reshape(rows, channels)
    return encode(Frame(0x10, seq, SensorRows(stream, index, 1_000_000 + index * 1000, 1000, values).encode()))


def bound(channels: int = 3, scale: float = 1.0) -> tuple[Decoder, Block]:
    decoder, block = Decoder(), Block(channels, scale)
    decoder.bind(0, block)
    return decoder, block


@given(st.integers(0, 255), st.integers(0, 0xFFFF), st.binary(max_size=PAYLOAD_BYTES_MAX), st.integers(0, 15))
def test_a_frame_is_written_as_the_specification_says(kind: int, seq: int, payload: bytes, flags: int) -> None:
    data = encode(Frame(kind, seq, payload, flags))
    found = Decoder().feed(data)
    assert found == [Frame(kind, seq, payload, flags)]
    if not any(len(part) == 254 for part in data.split(b"\0")):
        # Where a run of 254 ends the body, the paper's encoder adds a code that decoders do not need.
        assert len(data) <= len(written(kind, seq, payload, flags))
    assert Decoder().feed(written(kind, seq, payload, flags)) == found


def test_runs_of_254_and_zeros_at_the_ends_come_back() -> None:
    for size in (0, 1, 245, 246, 247, 253, 254, 255, 500, 508, 509, 1024):
        for payload in (b"\1" * size, b"\0" * size, b"\0" + b"\1" * max(0, size - 2) + b"\0" * (size > 1)):
            payload = payload[:size]
            assert Decoder().feed(encode(Frame(1, 2, payload))) == [Frame(1, 2, payload)]
            assert Decoder().feed(written(1, 2, payload)) == [Frame(1, 2, payload)]


@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(0, 2**32))
def test_pieces_do_not_matter(payloads: list[bytes], seed: int) -> None:
    frames = [Frame(3, i, payload) for i, payload in enumerate(payloads)]
    data = b"".join(encode(frame) for frame in frames)
    cut, decoder, found = random.Random(seed), Decoder(), []
    while data:
        size = cut.randint(1, 40)
        found += decoder.feed(data[:size])
        data = data[size:]
    assert found == frames
    assert (decoder.frames, decoder.bad) == (len(frames), 0)


@given(st.binary(max_size=4000))
def test_random_bytes_are_never_a_frame(data: bytes) -> None:
    decoder = Decoder()
    decoder.bind(0, Block(2))
    assert decoder.feed(data + b"\0") == []


def test_damaged_frames_are_dropped_and_counted() -> None:
    faults = Faults.each(2e-3, seed=3)
    sent = [Frame(5, i, random.Random(i).randbytes(60)) for i in range(3000)]
    decoder = Decoder()
    found = [frame for frame in sent for frame in decoder.feed(faults.pass_on(encode(frame)))]
    assert set(found) <= set(sent)
    assert 1500 < len(found) < 2700
    assert decoder.bad >= len(sent) - len(found) - faults.done


def test_a_frame_longer_than_agreed_is_dropped_and_the_next_one_comes() -> None:
    decoder = Decoder(payload_max=64)
    assert decoder.feed(encode(Frame(1, 1, b"x" * 65)) + b"\1" * 5000) == []
    assert decoder.feed(b"\0" + encode(Frame(1, 2, b"x" * 64))) == [Frame(1, 2, b"x" * 64)]
    assert decoder.bad == 2


def test_a_boot_banner_costs_no_frame() -> None:
    decoder = Decoder()
    data = b"\r\nBootloader v1.2 ... OK\r\n" + encode(Frame(1, 1, b"a")) + b"printf" + encode(Frame(1, 2, b"b"))
    assert [frame.payload for frame in decoder.feed(data)] == [b"a", b"b"]
    assert decoder.bad == 2


def test_what_a_frame_does_not_take_is_a_value_error() -> None:
    for frame in (Frame(1, 1, b"x" * 1025), Frame(256, 1, b""), Frame(1, 65536, b""), Frame(1, 1, b"", flags=16)):
        with pytest.raises(ValueError, match="expected"):
            encode(frame)
    with pytest.raises(ValueError, match="payload_max"):
        Decoder(4)


def test_rows_go_to_their_block_without_a_frame() -> None:
    decoder, block = bound(scale=0.5)
    block.core.started()
    assert decoder.feed(sensor(0, 0) + sensor(1, 4) + encode(Frame(0x40, 9, b""))) == [Frame(0x40, 9, b"")]
    (run,) = block.take()
    assert run.values.shape == (8, 3)
    assert run.values[1].tolist() == [1.5, 2.0, 2.5]
    assert run.times_us.tolist() == [1_000_000 + 1000 * i for i in range(8)]
    assert (run.first, run.frames_lost, run.rows_lost) == (0, 0, 0)
    assert block.take() == []


def test_floats_come_as_they_are() -> None:
    decoder, block = bound(2, scale=3.0)
    values = np.array([[1.5, -2.25], [np.inf, 1e-30]], np.float32)
    decoder.feed(encode(Frame(0x10, 0, SensorRows(0, 0, 0, 10, values).encode())))
    (run,) = block.take()
    assert np.array_equal(run.values, values)


def test_every_missing_frame_and_row_is_counted() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        decoder, block = bound()
        block.core.started()
        lost_frames = lost_rows = seen = index = 0
        runs = []
        for seq in range(66_000 if seed == 0 else 600):
            index += 5 if (dropped := draw.random() < 0.02) else 0  # rows that the board itself dropped
            rows = draw.randint(1, 6)
            lost = draw.random() < 0.1 and seq % 600 < 590
            lost_frames += lost
            lost_rows += 5 * dropped + rows * lost
            if not lost:
                decoder.feed(sensor(seq & 0xFFFF, index, rows))
                seen += rows
            index += rows
            runs += block.take()
        assert (block.core.frames_lost, block.core.rows_lost) == (lost_frames, lost_rows)
        assert sum(run.frames_lost for run in runs) == lost_frames
        assert sum(run.rows_lost for run in runs) == lost_rows
        assert sum(len(run.values) for run in runs) == seen == index - lost_rows
        ends = [run.first + len(run.values) for run in runs[:-1]]
        assert all(run.first == end + run.rows_lost for run, end in zip(runs[1:], ends, strict=True))


def test_a_repeated_frame_is_taken_once() -> None:
    decoder, block = bound()
    decoder.feed(sensor(7, 100) + sensor(8, 104) + sensor(7, 100) + sensor(8, 104) + sensor(9, 108))
    (run,) = block.take()
    assert (run.first, len(run.values), block.core.repeated, block.core.frames_lost) == (100, 12, 2, 0)


def test_the_index_goes_on_over_its_end() -> None:
    decoder, block = bound()
    decoder.feed(sensor(0xFFFF, 2**32 - 4) + sensor(0, 2**32) + sensor(2, 2**32 + 8))
    first, second = block.take()
    assert (first.first, len(first.values)) == (2**32 - 4, 8)
    assert (second.first, second.frames_lost, second.rows_lost) == (2**32 + 8, 1, 4)


def test_what_is_missing_at_the_end_is_told_by_where_it_ended() -> None:
    decoder, block = bound()
    block.core.started()
    decoder.feed(sensor(0, 0))
    assert block.core.missing(3, 12) == (2, 8)
    block.core.joined()
    assert block.core.missing(3, 12) == (0, 0)


def test_rows_that_do_not_fit_their_stream_are_frames() -> None:
    decoder, block = bound(2)
    payload = SensorRows(0, 0, 0, 1, np.zeros((4, 3), np.int16)).encode()
    assert len(decoder.feed(encode(Frame(0x10, 0, payload)))) == 1
    assert len(decoder.feed(encode(Frame(0x10, 0, payload[:12])))) == 1
    assert len(decoder.feed(encode(Frame(0x10, 0, SensorRows(1, 0, 0, 1, np.zeros((4, 2), np.int16)).encode())))) == 1
    assert len(decoder.feed(encode(Frame(0x10, 0, SensorRows(0, 0, 0, 1, np.zeros((0, 2), np.int16)).encode())))) == 1
    assert block.take() == []


def test_rows_that_nobody_took_count_as_lost() -> None:
    decoder, block = Decoder(), Block(1, rows_max=8)
    decoder.bind(0, block)
    block.core.started()
    for seq in range(5):
        decoder.feed(sensor(seq, 4 * seq, channels=1))
    assert sum(len(run.values) for run in block.take()) == 8
    decoder.feed(sensor(5, 20, channels=1))
    (run,) = block.take()
    assert (run.first, run.frames_lost, run.rows_lost, block.core.overflowed) == (20, 3, 12, 12)


def test_a_block_holds_whatever_one_piece_brings() -> None:
    decoder, block = bound(1)
    block.core.started()
    one = np.zeros((1, 1), np.int16)
    data = b"".join(encode(Frame(0x10, i, SensorRows(0, 2 * i, 0, 1, one).encode())) for i in range(2000))
    many = np.zeros((502, 1), np.int16)
    data += b"".join(
        encode(Frame(0x10, 2000 + i, SensorRows(0, 4000 + 502 * i, 0, 1, many).encode())) for i in range(40)
    )
    rows = 0
    for piece in pieces(data):
        assert len(piece) <= PIECE_BYTES_MAX
        decoder.feed(piece)
        rows += sum(len(run.values) for run in block.take())
    assert (rows, block.core.overflowed, block.core.rows_lost) == (2000 + 40 * 502, 0, 2000)


def test_a_chunk_of_512_bytes_has_few_bytes_around_it() -> None:
    for payload in (b"\0" * 516, b"\x55" * 516, random.Random(1).randbytes(516)):
        assert 512 / len(encode(Frame(0x31, 1, payload, ACKREQ))) >= 0.95


def test_its_examples_are_true() -> None:
    assert doctest.testmod(frames).failed == 0
