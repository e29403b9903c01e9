"""Messages: each comes back as it was sent; what is none is a MessageError; a terminal is not harmed."""

from __future__ import annotations

import doctest

import msgpack
import numpy as np
import pytest
from board_models import CAPS
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge import messages as m
from firmware_bridge.errors import ERROR_NAMES, MessageError

SHA = bytes(range(32))
REQUESTS = [
    m.HelloRequest(5), m.TimeRequest(1 << 40), m.StreamRequest(255, False, 0), m.MetricsRequest(),
    m.BeginRequest(9, SHA, 1, 1), m.ChunkRequest(64, b"abc"), m.CommitRequest(SHA), m.ConfirmRequest(SHA),
    m.AbortRequest(), m.RollbackRequest(), m.ResetRequest(),
]  # fmt: skip
ANSWERS = [
    CAPS, m.TimeAnswer(1, 2, 3), m.StreamAnswer(0, True, 4, 5, 6), m.Metrics(up_ms=1, rx=2, more={"heat": 3}),
    m.BeginAnswer(1, 64), m.ChunkAnswer(128), m.CommitAnswer(0, 1), m.ConfirmAnswer(0, 2), m.AbortAnswer(),
    m.RollbackAnswer(1, 2), m.ResetAnswer(),
]  # fmt: skip
UNASKED = [
    m.Result(1, 2, 3, 65535, 4), m.Metrics(), m.Log(20, 5, "hello"),
    m.Drift(1, 0, 2, m.UP, -5, 6, 7, 8, 9, tuple(range(16))),
]  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda item: type(item).__name__)
def test_requests_come_back(request_: m.Request) -> None:
    assert m.decode_request(request_.TYPE, request_.encode()) == request_


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda item: type(item).__name__)
def test_answers_come_back(answer: m.Answer) -> None:
    assert m.decode_answer(answer.TYPE, answer.encode()) == answer


@pytest.mark.parametrize("message", UNASKED, ids=lambda item: type(item).__name__)
def test_what_boards_send_comes_back(message: m.Unasked) -> None:
    assert m.decode_unasked(message.TYPE, message.encode()) == message


def test_rows_come_back() -> None:
    for values in (np.array([[1, -2], [3, 4]], np.int16), np.array([[1.5], [2.5]], np.float32)):
        found = m.SensorRows.decode(m.SensorRows(3, 4, 5, 6, values).encode())
        assert np.array_equal(found.values, values) and found.values.dtype == values.dtype
        assert (found.stream, found.index, found.t0_us, found.dt_us) == (3, 4, 5, 6)


@given(st.integers(0, 255), st.binary(max_size=1024))
def test_any_payload_is_a_message_or_a_message_error(kind: int, payload: bytes) -> None:
    for decode in (m.decode_request, m.decode_answer, m.decode_unasked):
        try:
            decode(kind, payload)
        except MessageError:
            pass
        except KeyError:
            assert kind not in (m.REQUESTS if decode is not m.decode_unasked else m.UNASKED)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from(["uid", "boot", "frame_max", "window", "align", "sensors", "model", "formats", "slot_bytes", "fw"]),
)
def test_any_value_of_a_key_of_caps_is_caps_or_a_message_error(value: object, key: str) -> None:  # fmt: skip
    payload = msgpack.packb({**msgpack.unpackb(CAPS.encode()), key: value})
    try:
        caps = m.Caps.decode(payload)
    except MessageError:
        return
    assert 64 <= caps.frame_max <= 1024 and 1 <= caps.window <= 16 and caps.uid.isprintable()


def test_keys_that_are_not_known_are_ignored_and_missing_ones_have_defaults() -> None:
    whole = msgpack.unpackb(CAPS.encode())
    assert m.Caps.decode(msgpack.packb({**whole, "colour": [1, {"a": 2}]})) == CAPS
    small = {key: whole[key] for key in ("uid", "boot", "frame_max", "window")}
    caps = m.Caps.decode(msgpack.packb(small))
    assert (caps.sensors, caps.model.sha256, caps.slot_bytes) == ((), "", 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 17}, "window is 17, expected a whole number from 1 to 16"),
        ({"window": 0}, "window is 0"),
        ({"frame_max": 63}, "frame_max is 63"),
        ({"align": 600}, "align is 600"),
        ({"uid": ""}, "uid is empty"),
        ({"uid": "x" * 33}, "at most 32 characters"),
        ({"boot": -1}, "boot is -1"),
        ({"boot": True}, "boot is True"),
        ({"sensors": [{"stream": 0, "format": 1, "channels": []}]}, "no channels"),
        ({"sensors": [{"stream": 0, "format": 3, "channels": ["x"]}]}, "format is 3"),
        ({"sensors": [{"stream": 0, "format": 1, "channels": ["x"], "scale": 0}]}, "scale is 0"),
        ({"sensors": [{"stream": 0, "format": 1, "channels": ["x"]}] * 2}, "same stream"),
        ({"model": {"sha": "xyz!"}}, "SHA-256 in hex"),
    ],
    ids=str,
)
def test_a_board_that_says_what_cannot_be_is_told_so(change: dict[str, object], words: str) -> None:
    payload = msgpack.packb({**msgpack.unpackb(CAPS.encode()), **change})
    with pytest.raises(MessageError, match=words):
        m.Caps.decode(payload)


def test_text_of_a_board_does_not_reach_a_terminal_as_it_is() -> None:
    escape = "\x1b]0;owned\x07"
    assert "\x1b" not in m.Log.decode(m.Log(20, 0, escape).encode()).text
    assert "\x1b" not in m.Refusal.decode(m.Refusal(4, escape).encode()).text
    assert "\x1b" not in m.Caps.decode(msgpack.packb({**msgpack.unpackb(CAPS.encode()), "uid": escape})).uid
    with pytest.raises(MessageError) as caught:
        m.Caps.decode(msgpack.packb({**msgpack.unpackb(CAPS.encode()), "fw": escape * 20}))
    assert "\x1b" not in str(caught.value)


def test_a_refusal_keeps_its_words_and_every_code_has_a_name() -> None:
    assert m.Refusal.decode(m.Refusal(6, "hash").encode()) == m.Refusal(6, "hash")
    assert sorted(ERROR_NAMES) == list(range(1, 11))
    with pytest.raises(MessageError, match="no code"):
        m.Refusal.decode(b"")


def test_a_names_too_long_for_one_frame_is_said() -> None:
    sensor = m.Sensor(0, "s" * 64, m.I16, tuple(f"channel{i}" * 4 for i in range(64)), 1000)
    with pytest.raises(MessageError, match="shorten"):
        m.Caps(**{**{name: getattr(CAPS, name) for name in CAPS.__slots__}, "sensors": (sensor,)}).encode()


def test_the_model_has_the_id_that_results_name_it_by() -> None:
    assert CAPS.model.id == 0xABABABAB
    assert m.RunningModel("", 0, 0, 0).id == 0
    assert CAPS.sensor(0) is CAPS.sensors[0] and CAPS.sensor(9) is None
    assert CAPS.sensors[0].rate_hz == 50
    assert (m.name_of(0x31), m.name_of(0x99)) == ("MODEL_CHUNK", "type 99")
    assert m.Log(30, 0, "").level_name == "warning"


def test_its_examples_are_true() -> None:
    assert doctest.testmod(m).failed == 0
