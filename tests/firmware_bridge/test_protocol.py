"""The host's end: retries, one request under way, exact gaps, restarts, alarms acknowledged once, any bytes."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from board_models import CAPS
from hypothesis import given, settings
from hypothesis import strategies as st
from serial_wire import CLEAN, Faults, Wire

from firmware_bridge import messages as m
from firmware_bridge.errors import TYPE, BridgeError, MessageError
from firmware_bridge.frames import ACKREQ, ERR, RESP, Decoder, Frame, encode
from firmware_bridge.protocol import (
    RETRY_S,
    Answered,
    ClockJumped,
    Gap,
    Lost,
    Malformed,
    Protocol,
    Received,
    Refused,
    Restarted,
    Rows,
    Unanswered,
    Unknown,
)  # fmt: skip
from firmware_bridge.simboard import Mischief, SimulatedBoard, synthetic
from firmware_bridge.slots import Slots


def board(folder: Path, *mischief: Mischief, **options: object) -> SimulatedBoard:
    slots = Slots.in_folder(folder, 16_384)
    return SimulatedBoard("A1", slots, [synthetic(rate_hz=200)], mischief=mischief, **options)  # type: ignore[arg-type]


def met(folder: Path, *mischief: Mischief, faults: Faults = CLEAN, **options: object) -> Wire:
    """A wire on which HELLO was said."""
    wire = Wire(Protocol(5, time_interval_s=0), board(folder, *mischief, **options), faults)
    wire.write(wire.host.send(m.HelloRequest(5), 0.0))
    assert wire.until(lambda: wire.host.caps is not None)
    return wire


def sent(data: bytes) -> list[Frame]:
    return Decoder().feed(data)


def answer(host: Protocol, message: m.Message, seq: int = 1, now_s: float = 0.0, flags: int = RESP) -> list[object]:
    return list(host.receive(encode(Frame(message.TYPE, seq, message.encode(), flags)), now_s))


def greeted() -> Protocol:
    host = Protocol(1, time_interval_s=0)
    host.send(m.HelloRequest(1), 0.0)
    answer(host, CAPS)
    return host


# requests -------------------------------------------------------------------------------------------------


def test_a_request_is_repeated_as_the_specification_says_and_then_given_up() -> None:
    host = Protocol(1)
    first = host.send(m.MetricsRequest(), 10.0)
    times, now_s = [], 10.0
    while (due_s := host.next_timeout()) is not None:
        now_s = due_s
        events = host.tick(now_s)
        times.append(round(now_s - 10.0, 3))
        assert host.outgoing() == (b"" if events else first)
    assert times == [0.15, 0.45, 1.05, 2.25]
    (given_up,) = events
    assert isinstance(given_up, Unanswered) and "after 4 tries" in str(given_up.error)
    assert host.idle and host.retries == 3


def test_on_a_slow_line_timeouts_wait_for_the_bytes_under_way() -> None:
    host = Protocol(1, byte_s=10 / 9600)
    host.send(m.MetricsRequest(), 0.0)
    due_s = host.next_timeout()
    assert due_s is not None and due_s > RETRY_S[0] + 1.0


def test_one_request_is_under_way_and_the_others_wait() -> None:
    host = greeted()
    assert len(sent(host.send(m.MetricsRequest(), 0.0))) == 1
    assert host.send(m.AbortRequest(), 0.0) == b""
    assert (host.under_way, host.waiting) == (1, 1)
    assert isinstance(answer(host, m.Metrics(), 2)[-1], Answered)
    assert [frame.type for frame in sent(host.outgoing())] == [m.AbortRequest.TYPE]


def test_of_chunks_as_many_as_the_window_says_are_under_way() -> None:
    host = greeted()
    data = b"".join(host.send(m.ChunkRequest(64 * i, bytes(64)), 0.0) for i in range(10))
    assert len(sent(data)) == CAPS.window
    answer(host, m.ChunkAnswer(64), 2)
    assert len(sent(host.outgoing())) == 1


def test_too_many_or_too_long_requests_are_refused_here() -> None:
    host = greeted()
    with pytest.raises(BridgeError, match="the board takes 512"):
        host.send(m.ChunkRequest(0, bytes(600)), 0.0)
    for _ in range(65):
        host.send(m.MetricsRequest(), 0.0)
    with pytest.raises(BridgeError, match="wait for their answers"):
        host.send(m.MetricsRequest(), 0.0)


def test_an_answer_that_nobody_waits_for_is_counted() -> None:
    host = greeted()
    host.send(m.MetricsRequest(), 0.0)
    assert answer(host, m.Metrics(), seq=9) == []
    assert answer(host, m.ResetAnswer(), seq=2) == []
    assert host.stale == 2 and host.under_way == 1


def test_a_damaged_answer_leaves_the_request_under_way() -> None:
    host = greeted()
    host.send(m.StreamRequest(0, True), 0.0)
    (event,) = host.receive(encode(Frame(0x12, 2, b"short", RESP)), 0.0)
    assert isinstance(event, Malformed) and isinstance(event.error, MessageError)
    assert host.under_way == 1 and host.malformed == 1


def test_a_refusal_ends_the_request() -> None:
    host = greeted()
    request = m.RollbackRequest()
    host.send(request, 0.0)
    (event,) = host.receive(encode(Frame(0x35, 2, m.Refusal(4, "nothing").encode(), RESP | ERR)), 0.0)
    assert isinstance(event, Refused) and event.request is request
    assert str(event.error) == "the board refused MODEL_ROLLBACK: STATE (nothing)"


# streams --------------------------------------------------------------------------------------------------


def test_rows_come_without_loss_on_a_clean_line(tmp_path: Path) -> None:
    wire = met(tmp_path)
    wire.write(wire.host.send(m.StreamRequest(0, True), wire.now_s))
    wire.run(10)
    wire.write(wire.host.send(m.StreamRequest(0, False), wire.now_s))
    wire.run(1)
    rows = [event for event in wire.events if isinstance(event, Rows)]
    counts = wire.host.streams()[0]
    assert counts.rows == sum(len(event.values) for event in rows) >= 1980
    assert counts.frames == wire.board.frames_sent[0]
    assert (counts.frames_lost, counts.rows_lost, wire.of(Gap)) == (0, 0, [])
    assert np.array_equal(np.diff(np.concatenate([event.times_us for event in rows])), np.full(counts.rows - 1, 5000))
    ends = [event.index + len(event.values) for event in rows]
    assert [event.index for event in rows] == [0, *ends[:-1]]


@pytest.mark.parametrize("seed", range(6))
def test_on_a_bad_line_every_lost_frame_and_row_is_counted(tmp_path: Path, seed: int) -> None:
    wire = met(tmp_path, faults=Faults.each(1e-3, seed))
    for _ in range(3):  # turned off and on again: each run is counted from its beginning to its end
        for on in (True, False):
            request = m.StreamRequest(0, on)
            wire.write(wire.host.send(request, wire.now_s))
            assert wire.until(lambda request=request: any(  # type: ignore[misc]
                isinstance(event, Answered) and event.request is request for event in wire.events))  # fmt: skip
            wire.run(10 if on else 1)
    counts = wire.host.streams()[0]
    assert counts.frames_lost > 20
    assert counts.frames + counts.frames_lost == wire.board.frames_sent[0]
    assert counts.rows + counts.rows_lost == 10 * wire.board.frames_sent[0]
    gaps = [event for event in wire.events if isinstance(event, Gap)]
    assert sum(gap.frames for gap in gaps) == counts.frames_lost
    assert sum(gap.rows for gap in gaps) == counts.rows_lost
    source = synthetic(rate_hz=200)
    for event in wire.events:
        if isinstance(event, Rows):  # nothing wrong was taken
            start = round(int(event.times_us[0]) * 200 / 1e6)
            assert np.array_equal(event.values, (source.rows(start, len(event.values)) / 4096).astype(np.float32))


def test_credit_that_runs_out_is_a_gap_in_rows_and_not_in_frames(tmp_path: Path) -> None:
    wire = met(tmp_path)
    wire.write(wire.host.send(m.StreamRequest(0, True, 20), wire.now_s))
    wire.run(5)
    wire.write(wire.host.send(m.StreamRequest(0, True, 20), wire.now_s))
    wire.run(0.5)
    (gap,) = wire.of(Gap)
    assert isinstance(gap, Gap) and gap.frames == 0 and gap.rows > 700 and gap.index == 200


def test_rows_come_as_counts_when_asked_for(tmp_path: Path) -> None:
    wire = Wire(Protocol(5, units=False, time_interval_s=0), board(tmp_path))
    wire.write(wire.host.send(m.HelloRequest(5), 0.0))
    wire.run(0.1)
    wire.write(wire.host.send(m.StreamRequest(0, True), wire.now_s))
    wire.run(1)
    (first, *_) = (event for event in wire.events if isinstance(event, Rows))
    assert np.array_equal(first.values, np.round(first.values)) and np.abs(first.values).max() > 100


def test_rows_that_fit_no_sensor_are_malformed() -> None:
    host = greeted()
    payload = m.SensorRows(0, 0, 0, 1, np.zeros((2, 5), np.int16)).encode()
    (event,) = host.receive(encode(Frame(0x10, 0, payload)), 0.0)
    assert isinstance(event, Malformed) and "do not fit" in str(event.error)


# what the board says by itself ----------------------------------------------------------------------------


def test_an_alarm_is_acknowledged_each_time_and_told_once() -> None:
    host = greeted()
    drift = m.Drift(1, 0, 0, m.UP, 1, 2, 3, 4, 5, tuple(range(16)))
    frame = encode(Frame(m.Drift.TYPE, 3, drift.encode(), ACKREQ))
    assert host.receive(frame, 0.0) == [Received(drift)]
    assert host.receive(frame, 0.2) == []
    assert sent(host.outgoing()) == [Frame(m.Drift.TYPE, 3, b"", RESP)] * 2


@pytest.mark.parametrize("seed", range(4))
def test_every_alarm_arrives_exactly_once_over_a_bad_line(tmp_path: Path, seed: int) -> None:
    source = synthetic(rate_hz=200, drift_after_rows=3000, channels=1)
    simulated = SimulatedBoard("A1", Slots.in_folder(tmp_path, 4096), [source])
    wire = Wire(Protocol(5, time_interval_s=0), simulated, Faults.each(1e-3, seed))
    wire.write(wire.host.send(m.HelloRequest(5), 0.0))
    wire.run(40)
    alarms = [event for event in wire.of(Received) if isinstance(event.message, m.Drift)]  # type: ignore[attr-defined]
    assert len(alarms) == simulated.metrics(wire.now_s).drift >= 1
    assert simulated.metrics(wire.now_s).drift_lost == 0


def test_an_alarm_that_nobody_acknowledges_is_counted_as_lost(tmp_path: Path) -> None:
    source = synthetic(rate_hz=200, drift_after_rows=3000, channels=1)
    simulated = SimulatedBoard("A1", Slots.in_folder(tmp_path, 4096), [source])
    wire = Wire(Protocol(5), simulated)
    wire.cut = True
    wire.run(40)
    metrics = simulated.metrics(wire.now_s)
    assert metrics.drift == metrics.drift_lost == 1


def test_missing_messages_of_other_types_are_counted() -> None:
    host = greeted()
    for seq in (0xFFFE, 0xFFFF, 0, 4):
        events = host.receive(encode(Frame(0x40, seq, m.Log(20, 0, "x").encode())), 0.0)
    assert events[0] == Lost(0x40, 3) and host.lost == {0x40: 3}


def test_unknown_types_are_counted_and_answered_when_they_ask() -> None:
    host = greeted()
    assert host.receive(encode(Frame(0x77, 4, b"?")), 0.0) == [Unknown(0x77, 1)]
    assert host.outgoing() == b""
    host.receive(encode(Frame(0x77, 5, b"?", ACKREQ)), 0.0)
    (reply,) = sent(host.outgoing())
    assert (reply.type, reply.seq, reply.flags) == (0x77, 5, RESP | ERR)
    assert m.Refusal.decode(reply.payload).code == TYPE
    assert host.receive(encode(Frame(1, 4, b"?", version=3)), 0.0) == [Unknown(1, 3)]
    assert host.unknown == 3


def test_acknowledgements_for_a_line_that_takes_nothing_are_bounded() -> None:
    host = greeted()
    for seq in range(5000):
        host.receive(encode(Frame(0x77, seq, b"", ACKREQ)), 0.0)
    assert len(host.outgoing()) < 30_000


# restarts and time ----------------------------------------------------------------------------------------


def test_a_restart_ends_what_was_waited_for_and_is_told(tmp_path: Path) -> None:
    wire = met(tmp_path)
    wire.write(wire.host.send(m.StreamRequest(0, True), wire.now_s))
    wire.run(2)
    boot = wire.host.caps.boot if wire.host.caps else 0
    wire.board.restart(wire.now_s, "watchdog")
    wire.write(wire.host.send(m.HelloRequest(5), wire.now_s))
    wire.write(wire.host.send(m.MetricsRequest(), wire.now_s))
    wire.run(1)
    (restarted,) = wire.of(Restarted)
    assert isinstance(restarted, Restarted) and restarted.caps.boot != boot and restarted.caps.reset == "watchdog"
    (ended,) = wire.of(Unanswered)
    assert isinstance(ended, Unanswered) and "restarted" in str(ended.error)
    assert wire.host.streams()[0].frames_lost == 0


def test_a_restart_is_noticed_without_being_asked_for(tmp_path: Path) -> None:
    wire = met(tmp_path)
    wire.run(11)
    wire.board.restart(wire.now_s + 0.01)
    wire.board.receive(wire.host.outgoing(), wire.now_s)
    wire.write(wire.host.send(m.MetricsRequest(), wire.now_s))  # its up_ms steps back
    wire.run(2)
    assert len(wire.of(Restarted)) == 1


def test_asking_who_it_is_keeps_nobody_waiting() -> None:
    host = greeted()
    for _ in range(3):
        host.send(m.MetricsRequest(), 0.0)
    kinds, now_s = [], 0.0
    for _ in range(60):  # nothing is answered any more
        now_s = host.next_timeout() or now_s + 1
        host.tick(now_s)
        kinds += [frame.type for frame in sent(host.outgoing())]
    starts = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    assert starts[:2] == [m.MetricsRequest.TYPE, m.HelloRequest.TYPE]
    assert kinds.count(m.MetricsRequest.TYPE) == 3 * 4 - 1  # the first was sent before
    assert kinds.index(m.HelloRequest.TYPE) >= 3 * 4 - 1


@pytest.mark.parametrize("ppm", [0, 15_000])
def test_time_is_asked_by_itself_and_drift_fitted(tmp_path: Path, ppm: float) -> None:
    wire = Wire(Protocol(5, time_interval_s=2), board(tmp_path, clock_ppm=ppm, clock_us=77_000_000))
    wire.write(wire.host.send(m.HelloRequest(5), 0.0))
    wire.run(60)
    at_us = 77_000_000 + round(30e6 * (1 + ppm / 1e6))
    assert abs(wire.host.clock.host_us(at_us) - 30e6) < 50_000
    assert wire.host.clock.samples > 20 and wire.host.clock.jumps == 0


def test_a_clock_that_jumps_is_told(tmp_path: Path) -> None:
    wire = Wire(Protocol(5, time_interval_s=0.4), board(tmp_path, Mischief.CLOCK))
    wire.write(wire.host.send(m.HelloRequest(5), 0.0))
    wire.run(20)
    assert wire.of(ClockJumped) and not wire.of(Restarted)


# the promise ----------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=400), max_size=8), st.booleans())
def test_any_bytes_in_and_only_bridge_errors_out(pieces: list[bytes], known: bool) -> None:
    host = greeted() if known else Protocol(1)
    host.send(m.MetricsRequest(), 0.0)
    for i, piece in enumerate(pieces):
        try:
            host.receive(piece, float(i))
            host.tick(float(i))
        except BridgeError:
            pass
    assert len(host.outgoing()) < 10_000


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 255) | st.sampled_from(sorted(m.NAMES)),
            st.integers(0, 6),
            st.integers(0, 7),
            st.binary(max_size=120),
        ),
        max_size=20,
    )
)
def test_any_frames_in_and_only_bridge_errors_out(frames: list[tuple[int, int, int, bytes]]) -> None:  # fmt: skip
    host = greeted()
    for request in (m.TimeRequest(0), m.StreamRequest(0, True), m.BeginRequest(9, bytes(32), 1, 1)):
        host.send(request, 0.0)
    for i, (kind, seq, flags, payload) in enumerate(frames):
        with contextlib.suppress(BridgeError):
            host.receive(encode(Frame(kind, seq, payload, flags)), i / 10)
        host.outgoing()
    assert host.frames == len(frames) + 1


@given(st.integers(0, 2**32))
def test_answers_with_bits_turned_are_taken_or_told(seed: int) -> None:
    draw = random.Random(seed)
    host = greeted()
    for message in (CAPS, m.Metrics(up_ms=5), m.TimeAnswer(1, 2, 3), m.StreamAnswer(0, True, 1, 2, 3)):
        payload = bytearray(message.encode())
        for _ in range(draw.randint(1, 4)):
            payload[draw.randrange(len(payload))] ^= 1 << draw.randrange(8)
        host.send(m.REQUESTS[message.TYPE][0].decode(SAMPLE[message.TYPE]), 0.0)
        with contextlib.suppress(BridgeError):
            host.receive(encode(Frame(message.TYPE, host._seq, bytes(payload), RESP)), 0.0)


SAMPLE = {
    1: m.HelloRequest(1).encode(), 2: m.TimeRequest(0).encode(), 0x12: m.StreamRequest(0, True).encode(), 0x20: b"",
}  # fmt: skip
