"""The round trip's JSON: whatever a peer sends is a typed message or a WireError, and never anything else."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import WireError
from tinylcm.types import Record
from tinylcm.wire import (
    RECORD_BYTES_MAX,
    SYNC_RECORDS_MAX,
    WIRE_VERSION,
    Anchor,
    Board,
    Desired,
    DesiredModel,
    Refused,
    RunningModel,
    SyncRequest,
    SyncResponse,
    board_from_json,
    canonical_json,
    decode_request,
    decode_response,
    encode,
    finite,
    record_from_json,
    record_id,
    record_reader,
    record_to_json,
)

RECORD = Record("label", "0123456789abcdef", 7, "boot", 12, {"label": "running", "values": [1, 2.5, None]})
REQUEST = SyncRequest(
    wire=WIRE_VERSION,
    boot="boot",
    anchor=Anchor(5, 1.5),
    running=(RunningModel("activity", "1.0.0", "ab", "trial"),),
    generation=3,
    server_instance="s",
    capabilities={"formats": ["onnx"]},
    events=[record_to_json(RECORD)],
    details=[],
    boards=(
        {"uid": "a1", "name": "left", "fw": "1.2.0", "model": "activity", "model_version": "1.0.0", "state": "online",
         "last_seen_ms": 20, "info": {"frames": 1 << 40, "rate": 0.5}},
    ),
)  # fmt: skip
RESPONSE = SyncResponse(
    acked={"events": ("0123456789abcdef", 7), "details": None},
    server_instance="s",
    server_time=1.5,
    next_sync_s=60.0,
    desired=Desired(4, (DesiredModel("activity", "1.1.0", "ab", 10, "/api/v1/x", 2),), ({"a": 1},), {"k": 1}),
    downlink=({"type": "label"},),
    refused=(Refused("events", "0123456789abcdef", 3, "why"),),
)
TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


def request(**change: object) -> bytes:
    return json.dumps({**json.loads(encode(REQUEST)), **change}).encode()


def response(**change: object) -> bytes:
    return json.dumps({**json.loads(encode(RESPONSE)), **change}).encode()


# What is refused


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "request is not JSON"),
        (b"\xff\xfe\xfa", "request is not JSON"),
        (b"[" * 100_000, "request is not JSON"),
        (b"[]", "request: expected a table of fields, got list"),
        (b"{}", "request.wire: is missing"),
        (b'{"wire": NaN}', "holds NaN"),
        (b"1" * 5000, "request is not JSON"),
        (request(wire=WIRE_VERSION + 1), "speaks versions 1 to"),
        (request(wire=0), "speaks versions 1 to"),
        (request(anchor={"boot_ns": 1}), r"request\.anchor\.wall_s: is missing"),
        (request(anchor={"boot_ns": 1, "wall_s": 10**400}), "finite number"),
        (request(events=[{}] * (SYNC_RECORDS_MAX + 1)), "at most 5000"),
        (request(events=[{}] * 3000, details=[{}] * 3000), "6000 records, at most 5000"),
        (request(boot="\ud800"), "half a surrogate pair"),
        (request(capabilities={"x": "\ud800"}), "capabilities: holds a number or a text"),
        (request(running=[{"model": 1}]), r"running\[0\]\.model: expected str, got int"),
    ],
)
def test_a_request_that_cannot_be_served_is_a_wire_error(body: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_request(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"  <!DOCTYPE html><html>log in", "is a web page, not a message: a proxy or a captive portal"),
        (b"<HTML>", "captive portal"),
        (response(acked={"events": ["xyz", 1]}), r"acked\.events: expected \[epoch, seq\] or null"),
        (response(acked={"events": ["0123456789abcdef", True]}), "expected"),
        (response(acked={"details": ["0123456789abcdef", 0]}), "expected"),
        (response(acked={"details": [1]}), "expected"),
        (response(next_sync_s=-1), "next_sync_s"),
        (response(desired={"generation": -1}), "desired.generation"),
        (response(refused=[{"stream": "other"}]), "expected events or details"),
        (response(downlink=["\ud800"]), r"downlink\[0\]: holds a number or a text"),
        (response(desired=[]), "desired: expected a table"),
    ],
)
def test_an_answer_that_is_none_is_a_wire_error(body: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_response(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Big"}, "lower-case word"),
        ({"type": "x" * 41}, "lower-case word"),
        ({"epoch": "0123456789ABCDEF"}, "16 hexadecimal digits"),
        ({"seq": 0}, "is 0, expected 1"),
        ({"boot_ns": -1}, "boot_ns"),
        ({"payload": []}, "expected dict, got list"),
        ({"payload": {"x": math.inf}}, "payload: holds a number or a text"),
        ({"payload": {"x": "\udc00"}}, "payload: holds a number or a text"),
        ({"payload": {"x": "y" * RECORD_BYTES_MAX}}, "at most 262144 are taken"),
    ],
)
def test_a_bad_record_is_refused_and_keeps_its_id(change: dict[str, object], message: str) -> None:
    value = {**record_to_json(RECORD), **change}
    with pytest.raises(WireError, match=message):
        record_from_json(value)
    settles = not {"epoch", "seq"} & change.keys()
    assert record_id(value) == (("0123456789abcdef", 7) if settles else None)


def test_an_infinite_number_spoils_its_record_and_not_the_request() -> None:
    body = encode(REQUEST).replace(b"2.5", b"1e999")
    with pytest.raises(WireError, match="payload"):
        record_from_json(decode_request(body).events[0])


def test_a_payload_nested_too_deep_is_refused() -> None:
    value: Any = 1
    for _ in range(14):
        value = [value]
    with pytest.raises(WireError, match="deeper than 12"):
        finite(value)
    with pytest.raises(WireError, match="deeper than 12"):
        record_from_json({**record_to_json(RECORD), "payload": {"x": value}})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1 << 64, 1j])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="payload holds"):
        finite({"x": [value]})


def test_a_value_that_answers_with_itself_ends() -> None:
    class Endless:
        def tolist(self) -> object:
            return self

    with pytest.raises(WireError, match="deeper than 12"):
        finite(Endless())


# Anything at all


@given(st.binary(max_size=200) | VALUE.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_a_wire_error(body: bytes) -> None:
    for decode in (decode_request, decode_response):
        with pytest.raises(WireError):
            decode(body)


@given(st.sampled_from(sorted(json.loads(encode(REQUEST)))), VALUE)
def test_any_value_in_a_request_gives_one_that_can_be_encoded_or_a_wire_error(key: str, value: object) -> None:
    try:
        decoded = decode_request(request(**{key: value}))
    except WireError as error:
        assert str(error)
        return
    for item in decoded.events:
        record_id(item)
    assert decode_request(encode(SyncRequest(**{**vars_of(decoded), "events": (), "details": (), "boards": ()})))


def vars_of(message: SyncRequest) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__slots__}


@given(st.sampled_from(sorted(json.loads(encode(RESPONSE)))), VALUE)
def test_any_value_in_an_answer_gives_one_that_can_be_encoded_or_a_wire_error(key: str, value: object) -> None:
    try:
        decoded = decode_response(response(**{key: value}))
    except WireError as error:
        assert str(error)
        return
    assert decode_response(encode(decoded)) == decoded


@given(st.sampled_from(sorted(record_to_json(RECORD))), VALUE)
def test_any_value_in_a_record_gives_one_that_can_be_stored_or_a_wire_error(key: str, value: object) -> None:
    changed = {**record_to_json(RECORD), key: value}
    record_id(changed)
    try:
        record = record_from_json(changed)
    except WireError as error:
        assert str(error).startswith(("record", "a payload"))
        return
    assert record_from_json(json.loads(canonical_json(record_to_json(record)))) == record


@given(VALUE)
def test_whatever_finite_gives_is_json(value: object) -> None:
    try:
        result = finite(value)
    except WireError as error:
        assert "64 bits" in str(error) or "deeper" in str(error)
        return
    assert json.loads(canonical_json(result)) == result


# What is kept


def test_messages_survive_their_json() -> None:
    assert decode_request(encode(REQUEST)) == REQUEST
    assert decode_response(encode(RESPONSE)) == RESPONSE
    assert record_from_json(record_to_json(RECORD)) == RECORD


def test_a_board_is_read_and_what_is_wrong_with_it_is_named() -> None:
    board = Board("a1", "left", "1.2.0", "activity", "1.0.0", "online", 20, {"frames": 1 << 40, "rate": 0.5})
    assert board_from_json(decode_request(encode(REQUEST)).boards[0]) == board
    assert board_from_json({"uid": "b:2"}) == Board("b:2")
    for wrong, said in (
        ({"uid": "a b"}, "letters, digits"),
        ({"uid": "a", "last_seen_ms": 0.5}, "last_seen_ms"),
        ({"uid": "a", "info": {"x": "y" * 5000}}, "at most 4096"),
        ({"uid": "a", "info": {"x": float("inf")}}, "cannot be stored"),
        ({}, "uid"),
    ):
        with pytest.raises(WireError, match=said):
            board_from_json(wrong)


def test_unknown_fields_are_ignored_and_unknown_types_kept() -> None:
    assert decode_request(request(future={"x": 1})) == REQUEST
    assert (
        record_from_json({**record_to_json(RECORD), "type": "not_yet_invented", "more": 1}).type == "not_yet_invented"
    )


def test_numpy_values_become_numbers() -> None:
    value = {"a": np.float32(1.5), "b": np.arange(3), "c": np.bool_(True), "d": np.array([np.nan, 1.0]), 5: (1,)}
    assert finite(value) == {"a": 1.5, "b": [0, 1, 2], "c": True, "d": [None, 1.0], "5": [1]}


def test_canonical_json_is_the_same_for_the_same_value() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'.encode()


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=5), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@given(st.sampled_from(["type", "boot", "boot_ns", "payload", "epoch", "seq"]), ODD)
def test_a_reader_that_has_seen_records_takes_and_refuses_what_a_new_one_does(key: str, value: object) -> None:
    good = {
        "type": "note", "epoch": "00000000000000aa", "seq": 1, "boot": "b", "boot_ns": 5, "payload": {"x": 1},
    }  # fmt: skip
    reader = record_reader()
    assert reader.read(good) == reader.read(dict(good)) == ("note", "b", 5, {"x": 1})
    odd = {**good, key: value}
    try:
        expected = record_from_json(odd)
    except WireError as error:
        if key not in ("epoch", "seq"):  # the id was read before
            with pytest.raises(WireError) as caught:
                reader.read(odd)
            assert str(caught.value) == str(error)
        return
    assert reader.read(odd) == (expected.type, expected.boot, expected.boot_ns, expected.payload)


@given(
    st.sampled_from(
        ["wire", "boot", "generation", "server_instance", "downlink_cursor", "events", "details", "capabilities",
         "running", "anchor"]
    ),
    ODD,
)  # fmt: skip
def test_a_request_of_the_usual_form_is_read_as_every_other(key: str, value: object) -> None:
    from tinylcm.wire import messages

    plain = {"wire": 1, "boot": "b", "anchor": {"boot_ns": 5, "wall_s": 1.5}, "generation": 3, "details": [1]}
    odd = {**plain, key: value}
    quick = messages._plain_request(odd)
    if quick is None:
        return
    # One unusual but good field sends the same request the long way.
    longer = messages.request_from({**odd, "anchor": {**odd["anchor"], "wall_s": 1}})  # type: ignore[dict-item]
    assert dataclasses.replace(longer, anchor=quick.anchor) == quick
