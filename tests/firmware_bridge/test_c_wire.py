"""The board's C code and the host's Python core on one wire that damages bytes: nothing wrong is taken, nothing is lost
without being told."""

from __future__ import annotations

import hashlib
import random
import struct

import line_reference as line
import numpy as np
import pytest
from board_oracle import random_network, random_trees
from c_board import CBoard, CReader, c_encode
from serial_wire import Faults, Wire

from firmware_bridge.frames import Decoder
from firmware_bridge.frames import Frame as HostFrame
from firmware_bridge.frames import encode as host_encode
from firmware_bridge.messages import HelloRequest, MetricsRequest, StreamRequest
from firmware_bridge.protocol import Answered, Gap, Protocol, Received, Rows
from firmware_bridge.transfer import State, Transfer

FACTORY = random_trees(1)
MODEL = random_network(7, (12, 16, 8, 4))
SESSION = 5


class Watch:
    """The C board as the wire drives it: rows of two channels every 10 ms, whose values say which row they are."""

    def __init__(self, board: CBoard, rows: int = 8) -> None:
        self.board, self.rows = board, rows
        self.number = 0
        self._out = b""
        self._due_s = 0.0

    def receive(self, data: bytes, now_s: float) -> None:
        self._clock(now_s)
        self._out += self.board.feed_raw(data)

    def tick(self, now_s: float) -> None:
        self._clock(now_s)
        if now_s >= self._due_s:
            self._due_s = now_s + self.rows / 100
            numbers = np.arange(self.number, self.number + self.rows)
            values = np.stack([numbers % 32768, -(numbers % 32768)], axis=1).astype(np.int16)
            self.board.rows(0, values, round(now_s * 1e6), 10_000)
            self.number += self.rows
        self._out += self.board.feed_raw()

    def _clock(self, now_s: float) -> None:
        self.board.clock(round(now_s * 1e6) + 1)

    def outgoing(self) -> bytes:
        out, self._out = self._out, b""
        return out

    def next_timeout(self) -> float:
        return self._due_s


def opened(wire: Wire, session: int = SESSION) -> None:
    for _ in range(20):  # a HELLO may be given up on a bad line
        wire.host.send(HelloRequest(session), wire.now_s)
        if wire.until(lambda: wire.host.caps is not None, 3.0):
            return
    raise AssertionError("no board")


def updated(wire: Wire, transfer: Transfer, timeout_s: float = 300.0) -> None:
    seen = len(wire.events)
    end_s = wire.now_s + timeout_s
    while not transfer.ended and wire.now_s < end_s:
        for request in transfer.requests(wire.now_s):
            wire.host.send(request, wire.now_s)
        wire.step()
        for event in wire.events[seen:]:
            transfer.take(event, wire.now_s)
        seen = len(wire.events)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_a_stream_and_an_update_over_a_bad_line(rate: float, seed: int) -> None:
    with CBoard(FACTORY, slot_bytes=4096, trial_s=3000) as board:
        watch = Watch(board)
        wire = Wire(Protocol(SESSION, units=False), watch, Faults.each(rate, seed), pieces_seed=seed)
        opened(wire)
        wire.host.send(StreamRequest(0, True), wire.now_s)
        transfer = Transfer(MODEL, session=SESSION)
        updated(wire, transfer)
        assert transfer.state is State.DONE, transfer.error
        assert board.running[0] == hashlib.sha256(MODEL).digest() and board.running[2] == 2
        wire.run(20.0)
        wire.host.send(StreamRequest(0, False), wire.now_s)
        wire.run(5.0)
        check_every_row(wire, rate)


def check_every_row(wire: Wire, rate: float) -> None:
    """Each row came, with its own values, or lies in a gap that was told."""
    (start,) = {int(event.values[0, 0]) - event.index for event in wire.of(Rows)}
    at = 0
    lost = 0
    for event in wire.events:
        if isinstance(event, Rows):
            assert event.index == at
            numbers = np.arange(at, at + len(event.values)) + start
            assert event.values.tolist() == np.stack([numbers, -numbers], axis=1).astype(np.float32).tolist()
            at += len(event.values)
        elif isinstance(event, Gap):
            assert event.index == at
            at += event.rows
            lost += event.frames
    counts = wire.host.streams()[0]
    off = [event for event in wire.of(Answered) if isinstance(event.request, StreamRequest) and not event.request.on]
    assert at == off[-1].answer.index
    assert lost > 0 if rate else lost == 0
    assert counts.rows == at - sum(event.rows for event in wire.of(Gap))


def test_drift_reports_arrive_once_each_over_a_bad_line() -> None:
    with CBoard(FACTORY, slot_bytes=4096) as board:
        wire = Wire(Protocol(SESSION, units=False), Watch(board), Faults.each(1e-3, 8))
        opened(wire)
        for number in range(60):
            assert board.drift(number) == 0
            wire.run(1.5)
        told = [event.message.time_us for event in wire.of(Received) if event.message.TYPE == line.DRIFT]
        wire.host.send(MetricsRequest(), wire.now_s)
        wire.run(3.0)
        (metrics,) = [event.answer for event in wire.of(Answered) if isinstance(event.request, MetricsRequest)]
        lost = metrics.drift_lost
        assert sorted(set(told)) == told, "in order, none twice"
        assert len(told) + lost >= 60 > lost


# --- a million frames ---

SENT = 500_000


def damaged(stream: np.ndarray, rate: float, rng: np.random.Generator) -> bytes:
    """Bytes flipped, dropped, doubled and invented, each at a rate; a whole stream at once."""
    out = stream.copy()
    flips = rng.random(len(out)) < rate
    out[flips] ^= (1 << rng.integers(0, 8, flips.sum())).astype(np.uint8)
    counts = np.ones(len(out), np.int64)
    counts[rng.random(len(out)) < rate] = 0
    counts[rng.random(len(out)) < rate] = 2
    out = np.repeat(out, counts)
    invented = np.flatnonzero(rng.random(len(out)) < rate)
    return np.insert(out, invented, rng.integers(0, 256, len(invented), dtype=np.uint8)).tobytes()


def payload_of(number: int) -> bytes:
    """4 bytes that say which frame it is, and up to 40 that follow from it."""
    return (
        number.to_bytes(4, "little")
        + hashlib.blake2b(number.to_bytes(4, "little"), digest_size=1 + number % 40).digest()
    )


def taken_right(frames: list) -> int:
    """How many frames were taken; every one is the frame that was sent, in type, seq, flags and payload."""
    last = -1
    for frame in frames:
        number = int.from_bytes(frame.payload[:4], "little")
        assert frame.payload == payload_of(number)
        assert (frame.type, frame.seq, frame.flags) == (number % 251, number % 65536, number % 8)
        assert number > last, "in the order they were sent, none twice"
        last = number
    return len(frames)


@pytest.mark.long
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_a_million_frames_and_none_wrong_is_taken(rate: float) -> None:
    """Half a million at each rate, from the host's encoder to the C decoder and from the C encoder to the host's."""
    rng = np.random.default_rng(int(1 / rate))
    half = SENT // 2
    taken = bad = 0
    ours = CReader()
    theirs = Decoder()
    for first in range(0, half, 10_000):
        numbers = range(first, first + 10_000)
        down = b"".join(
            host_encode(HostFrame(type=n % 251, seq=n % 65536, payload=payload_of(n), flags=n % 8)) for n in numbers
        )
        up = b"".join(c_encode(line.Frame(n % 8, n % 251, n % 65536, payload_of(n))) for n in numbers)
        taken += taken_right(ours.feed(damaged(np.frombuffer(down, np.uint8), rate, rng)))
        taken += taken_right(theirs.feed(damaged(np.frombuffer(up, np.uint8), rate, rng)))
    bad = ours.bad + theirs.bad
    ours.close()
    assert SENT * 0.2 < taken < SENT
    assert bad > 0
    print(f"rate {rate}: {SENT} frames, {taken} taken, {bad} damaged ones noticed, 0 wrong")


def test_the_line_recovers_from_any_cut() -> None:
    """A whole session's bytes, begun anywhere and ended anywhere: the next HELLO is answered."""
    rng = random.Random(3)
    stream = line.encode(line.Frame(1, line.CHUNK, 5, bytes(range(200)))) * 2
    for _ in range(200):
        with CBoard(FACTORY) as board:
            first, last = sorted((rng.randrange(len(stream)), rng.randrange(len(stream))))
            board.feed(stream[first:last])
            hello = line.Frame(line.ACKREQ, line.HELLO, 9, struct.pack("<BBHI", 1, 1, 1024, 1))
            answers = [frame for frame in board.feed(line.encode(hello)) if frame.type == line.HELLO]
            assert [(frame.flags, frame.seq) for frame in answers] == [(line.RESP, 9)]
