"""The link in C: requests and their answers, what is done once, credit, drift reports that arrive, text, overruns."""

from __future__ import annotations

import struct

import line_reference as line
import msgpack
import numpy as np
import pytest
from board_oracle import random_trees
from c_board import CBoard
from line_reference import ACKREQ, ERR, RESP, Frame, encode

FACTORY = random_trees(1, channels=2)
ENDLESS = 0xFFFFFFFF
OFF, ROOM, SIZE, ARG = -4, -2, -7, -1
COUNTERS = {
    "up_ms", "rx", "rx_bad", "rx_drop", "tx", "tx_drop", "rows", "rows_drop", "infer", "infer_us", "drift",
    "drift_lost", "credit",
}  # fmt: skip


@pytest.fixture
def board():
    with CBoard(FACTORY) as made:
        assert made.status == 0
        yield made


def metrics(board: CBoard) -> dict:
    return msgpack.unpackb(board.ask(line.METRICS).payload)


def stream(board: CBoard, number: int, on: int, credit: int = ENDLESS) -> tuple:
    answer = board.ask(line.STREAM, struct.pack("<BBI", number, on, credit))
    assert answer.flags == RESP
    return struct.unpack("<BBIHI", answer.payload)


def refusal(frame: Frame) -> int:
    assert frame.flags == RESP | ERR
    assert 1 < len(frame.payload) <= 97
    frame.payload[1:].decode()
    return frame.payload[0]


def test_hello_tells_what_the_board_is(board: CBoard) -> None:
    caps = msgpack.unpackb(board.hello().payload)
    assert caps.pop("model").keys() == {"sha", "slot", "state", "counter"}
    assert caps == {
        "uid": "host-board", "boot": 1, "fw": "test 1", "frame_max": 256, "window": 4, "slots": 2, "slot_bytes": 1024,
        "align": 8, "abi": 1, "formats": [1], "reset": "power on", "trial_s": 60,
        "sensors": [
            {
                "stream": 0, "name": "pair", "format": 1, "channels": ["x", "y"], "rate_mhz": 10000, "unit": "m/s2",
                "scale": 0.5,
            },
            {
                "stream": 1, "name": "one", "format": 2, "channels": ["x"], "rate_mhz": 1000, "unit": "Pa",
                "scale": 1.0,
            },
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", 2), (bytes(9), 2), (struct.pack("<BBHI", 2, 1, 1024, 0), 2), (struct.pack("<BBHI", 1, 1, 63, 0), 2),
        (struct.pack("<BBHI", 2, 9, 1024, 0), 3), (struct.pack("<BBHI", 0, 0, 1024, 0), 3),
    ],
)  # fmt: skip
def test_a_hello_that_cannot_be_is_refused(board: CBoard, payload: bytes, code: int) -> None:
    assert refusal(board.ask(line.HELLO, payload)) == code


def test_a_range_of_versions_with_ours_in_it_will_do(board: CBoard) -> None:
    assert board.ask(line.HELLO, struct.pack("<BBHI", 1, 7, 1024, 0)).flags == RESP


@pytest.mark.parametrize("kind", [0x00, 0x03, 0x10, 0x13, 0x36, 0x42, 0xFF])
def test_an_unknown_type_is_answered(board: CBoard, kind: int) -> None:
    assert refusal(board.ask(kind, b"x")) == 1


def test_another_protocol_version_is_answered_and_nothing_done(board: CBoard) -> None:
    (answer,) = board.feed(encode(Frame(ACKREQ, line.RESET, 5, b"\0", version=2)))
    assert refusal(answer) == 3 and answer.version == 1
    assert not board.reset_asked


def test_what_asks_for_no_answer_gets_none_and_is_counted(board: CBoard) -> None:
    assert board.feed(encode(Frame(0, line.RESET, 1, b"\0"))) == []
    assert board.feed(encode(Frame(RESP, line.TIME, 1, bytes(24)))) == []
    assert not board.reset_asked
    assert metrics(board)["rx_bad"] == 1


def test_time_is_told(board: CBoard) -> None:
    board.clock(123_456_789_012)
    answer = board.ask(line.TIME, struct.pack("<Q", 77))
    assert struct.unpack("<QQQ", answer.payload) == (77, 123_456_789_012, 123_456_789_012)
    assert refusal(board.ask(line.TIME, bytes(7))) == 2


@pytest.mark.parametrize("payload", [b"", bytes(5), bytes(7), b"\x02\x01" + bytes(4), b"\x00\x02" + bytes(4)])
def test_a_stream_that_cannot_be_is_refused(board: CBoard, payload: bytes) -> None:
    assert refusal(board.ask(line.STREAM, payload)) == 2


def test_rows_come_as_they_were_and_gaps_are_told_by_the_index(board: CBoard) -> None:
    values = np.array([[1, -2], [32767, -32768], [0, 255]], np.int16)
    board.hello()
    assert board.rows(0, values) == OFF
    assert stream(board, 0, 1, 2) == (0, 1, 2, 0, 0)
    assert board.rows(0, values, 5_000_000_000, 7) == 0
    assert board.rows(0, values[:1]) == 0
    assert board.rows(0, values) == OFF  # no credit: the index moves, the seq does not
    first, second = board.feed()
    assert (first.flags, first.type, first.seq) == (0, line.SENSOR, 0)
    assert struct.unpack_from("<BBHIQI", first.payload) == (0, 1, 3, 0, 5_000_000_000, 7)
    assert np.frombuffer(first.payload[20:], "<i2").reshape(3, 2).tolist() == values.tolist()
    assert (second.seq, struct.unpack_from("<I", second.payload, 4)[0]) == (1, 3)
    assert stream(board, 0, 1, 5) == (0, 1, 5, 2, 7)  # more credit; nothing begins anew
    assert board.rows(0, values) == 0
    (third,) = board.feed()
    assert (third.seq, struct.unpack_from("<I", third.payload, 4)[0]) == (2, 7)
    told = metrics(board)
    assert (told["rows"], told["rows_drop"], told["credit"]) == (13, 3, 4)
    assert stream(board, 0, 0) == (0, 0, 4, 3, 10)
    assert stream(board, 0, 1) == (0, 1, ENDLESS, 0, 0)


def test_floats_on_a_second_stream_and_all_streams_at_once(board: CBoard) -> None:
    board.hello()
    assert stream(board, 255, 1, 9) == (255, 1, 9, 0, 0)
    values = np.array([[1.5], [-0.0], [np.inf]], np.float32)
    assert board.rows(1, values) == 0
    (frame,) = board.feed()
    assert struct.unpack_from("<BBH", frame.payload) == (1, 2, 3)
    assert frame.payload[20:] == values.tobytes()
    assert metrics(board)["credit"] == 17
    assert stream(board, 255, 0) == (255, 0, 8, 0, 0)
    assert board.rows(0, np.zeros((1, 2), np.int16)) == OFF


def test_no_frame_is_larger_than_the_host_takes(board: CBoard) -> None:
    board.hello(payload_max=64)
    stream(board, 0, 1)
    assert board.rows(0, np.zeros((11, 2), np.int16)) == 0
    assert board.rows(0, np.zeros((12, 2), np.int16)) == SIZE
    assert board.rows(0, np.zeros((0, 2), np.int16)) == SIZE
    assert board.rows(2, np.zeros((1, 2), np.int16)) == ARG
    assert board.log(20, "ä" * 100) == 0
    frames = board.feed()
    assert [len(frame.payload) for frame in frames] == [64, 63]
    assert frames[1].payload[9:].decode() == "ä" * 27


def test_a_request_that_changes_something_is_done_once(board: CBoard) -> None:
    board.hello()
    stream(board, 0, 1, 3)
    again = board.ask(line.STREAM, struct.pack("<BBI", 0, 1, 3), seq=board.seq)
    assert struct.unpack("<BBIHI", again.payload) == (0, 1, 3, 0, 0)
    assert board.rows(0, np.zeros((1, 2), np.int16)) == 0
    again = board.ask(line.STREAM, struct.pack("<BBI", 0, 1, 3), seq=board.seq)
    assert struct.unpack("<BBIHI", again.payload) == (0, 1, 3, 0, 0), "the kept answer, and no new credit"
    assert metrics(board)["credit"] == 2


def test_a_refusal_is_kept_and_repeated_too(board: CBoard) -> None:
    first = board.ask(line.CONFIRM, bytes(32), seq=9)
    assert refusal(first) == 4
    assert board.ask(line.CONFIRM, bytes(32), seq=9) == first


def test_another_session_ends_streams_and_forgets_answers(board: CBoard) -> None:
    board.hello(session=1)
    stream(board, 0, 1)
    kept = board.seq
    board.hello(session=1)
    assert board.rows(0, np.zeros((1, 2), np.int16)) == 0
    board.hello(session=2)
    assert board.rows(0, np.zeros((1, 2), np.int16)) == OFF
    answer = board.ask(line.STREAM, struct.pack("<BBI", 0, 1, 5), seq=kept)
    assert struct.unpack("<BBIHI", answer.payload)[2] == 5


def test_nothing_but_text_is_sent_before_a_host_said_hello(board: CBoard) -> None:
    assert board.result(1, 2, 3, 4, 5) == OFF
    assert board.metrics() == OFF
    assert board.drift(1) == 0
    assert board.log(20, "started") == 0
    (frame,) = board.feed()
    assert (frame.type, frame.payload[0], frame.payload[9:]) == (line.LOG, 20, b"started")
    hello = Frame(ACKREQ, line.HELLO, 1, struct.pack("<BBHI", 1, 1, 1024, 1))
    assert [frame.type for frame in board.feed(encode(hello))] == [line.HELLO, line.DRIFT]
    assert metrics(board)["infer"] == 1


def test_a_prediction_is_sent(board: CBoard) -> None:
    board.hello()
    assert board.result(9, 0x04030201, 2, 65535, 1234) == 0
    (frame,) = board.feed()
    assert (frame.type, frame.flags, frame.seq) == (line.RESULT, 0, 0)
    assert struct.unpack("<QIHHI", frame.payload) == (9, 0x04030201, 2, 65535, 1234)
    told = metrics(board)
    assert (told["infer"], told["infer_us"]) == (1, 1234)


def test_metrics_have_every_counter_unasked_too(board: CBoard) -> None:
    board.hello()
    board.clock(3_000_000 * 2**32)
    assert board.metrics() == 0
    (frame,) = board.feed()
    told = msgpack.unpackb(frame.payload)
    assert (frame.type, frame.flags) == (line.METRICS, 0)
    assert told.keys() == COUNTERS and told["up_ms"] == 3000 * 2**32
    assert metrics(board).keys() == COUNTERS


def test_drift_is_repeated_until_the_host_has_it(board: CBoard) -> None:
    board.hello()
    board.drift(77, channel=1, direction=2, statistic=-5, first_bin=900)
    board.drift(78)
    (frame,) = board.feed()
    assert (frame.type, frame.flags, frame.seq) == (line.DRIFT, ACKREQ, 0)
    assert struct.unpack("<QBBBB4iI16H", frame.payload) == (77, 0, 1, 2, 0, -5, 2, -3, 4, 5, 900, *[0] * 15)
    assert board.feed() == []
    board.clock(200_001)
    assert board.feed() == [frame]
    (second,) = board.feed(encode(Frame(RESP, line.DRIFT, 0)))
    assert second.seq == 1 and struct.unpack_from("<Q", second.payload) == (78,)
    assert board.feed(encode(Frame(RESP, line.DRIFT, 0))) == [], "a late answer to the first is no answer to the second"
    board.feed(encode(Frame(RESP, line.DRIFT, 1)))
    told = metrics(board)
    assert (told["drift"], told["drift_lost"]) == (2, 0)


def test_drift_that_nobody_answers_is_lost_after_eight_tries(board: CBoard) -> None:
    board.hello()
    board.drift(1)
    sent = 0
    for step in range(1, 30):
        board.clock(step * 200_001)
        sent += len(board.feed())
    assert sent == 8
    assert metrics(board)["drift_lost"] == 1


def test_drift_that_the_host_refuses_is_lost_at_once(board: CBoard) -> None:
    board.hello()
    board.drift(1)
    board.feed()
    board.feed(encode(Frame(RESP | ERR, line.DRIFT, 0, b"\x01no")))
    assert metrics(board)["drift_lost"] == 1


def test_more_drift_than_can_wait_is_counted(board: CBoard) -> None:
    board.hello()
    assert [board.drift(at) for at in range(6)] == [0, 0, 0, 0, ROOM, ROOM]
    assert metrics(board)["drift_lost"] == 2


def test_bytes_without_room_are_counted_and_the_line_recovers(board: CBoard) -> None:
    board.hello()
    junk = encode(Frame(0, 1, 1, b"\x55" * 1000)) * 5
    assert board.push(junk) == 4095
    board.feed()
    for _ in range(8):
        board.feed()
    told = metrics(board)
    assert told["rx_drop"] == len(junk) - 4095 and told["rx_bad"] >= 4


def test_a_line_that_takes_nothing_costs_frames_that_are_counted_but_no_answer(
    board: CBoard,
) -> None:
    board.hello()
    stream(board, 0, 1)
    board.stick(True)
    statuses = [board.rows(0, np.zeros((50, 2), np.int16)) for _ in range(100)]
    assert ROOM in statuses
    assert board.feed(encode(Frame(ACKREQ, line.TIME, 500, bytes(8)))) == []
    board.stick(False)
    frames = board.feed()
    assert [frame.type for frame in frames if frame.flags & RESP] == [line.TIME]
    sensor = [frame for frame in frames if frame.type == line.SENSOR]
    assert len(sensor) == statuses.count(0)
    assert [frame.seq for frame in sensor] == list(range(len(sensor)))
    told = metrics(board)
    assert told["tx_drop"] == statuses.count(ROOM) and told["rows_drop"] == 50 * statuses.count(ROOM)


def test_reset_answers_first(board: CBoard) -> None:
    assert refusal(board.ask(line.RESET, b"\x01")) == 2
    assert not board.reset_asked
    assert board.ask(line.RESET, b"\0").flags == RESP
    assert board.reset_asked
