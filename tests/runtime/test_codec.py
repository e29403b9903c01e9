"""One message in three encodings: equal values out of each, the same bounds on each, and no bytes that break one."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import record, request
from tinylcm.errors import ConfigError, WireError
from tinylcm.wire import (
    CONTENT_TYPES,
    RECORD_BYTES_MAX,
    Anchor,
    Desired,
    DesiredModel,
    ExpansionError,
    Format,
    Refused,
    RunningModel,
    SyncRequest,
    SyncResponse,
    check_format,
    compress,
    decode_request,
    decode_response,
    encode,
    expand,
    format_of,
    formats,
    is_web_page,
    record_from_json,
)
from tinylcm.wire.codec import CONTAINERS_MAX, _has_protobuf

FORMATS: tuple[Format, ...] = ("json", "msgpack", "protobuf")
SAFE = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | SAFE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SAFE, inner, max_size=4),
    max_leaves=8,
)
TABLE = st.dictionaries(SAFE, JSON, max_size=4)
NATURAL = st.integers(0, 2**63 - 1)
RECORD = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["label", "alarm", "not_yet_invented"]),
        "epoch": st.just("0123456789abcdef"),
        "seq": st.integers(1, 2**63 - 1),
        "boot": SAFE,
        "boot_ns": NATURAL,
        "payload": TABLE,
    }
)
FINITE = st.floats(0, 1e300)
REQUEST = st.builds(
    SyncRequest,
    wire=st.just(1),
    boot=NAME,
    anchor=st.builds(Anchor, NATURAL, FINITE),
    running=st.lists(st.builds(RunningModel, NAME, NAME, NAME, NAME), max_size=2).map(tuple),
    generation=NATURAL,
    server_instance=NAME,
    capabilities=TABLE,
    events=st.lists(RECORD, max_size=3),
    details=st.lists(RECORD, max_size=3),
)
ID = st.tuples(st.just("0123456789abcdef"), st.integers(1, 2**63 - 1))
RESPONSE = st.builds(
    SyncResponse,
    acked=st.fixed_dictionaries({"events": st.none() | ID, "details": st.none() | ID}),
    server_instance=NAME,
    server_time=FINITE,
    next_sync_s=FINITE,
    desired=st.just("unchanged")
    | st.builds(
        Desired,
        NATURAL,
        st.lists(st.builds(DesiredModel, NAME, NAME, NAME, NATURAL, NAME, NATURAL), max_size=2).map(tuple),
        st.lists(TABLE, max_size=2).map(tuple),
        TABLE,
    ),
    downlink=st.lists(JSON, max_size=3).map(tuple),
    refused=st.lists(st.builds(Refused, st.just("events"), NAME, NATURAL, NAME), max_size=2).map(tuple),
)


@given(REQUEST, st.sampled_from(FORMATS))
def test_a_request_is_the_same_in_each_encoding(message: SyncRequest, format: Format) -> None:
    assert decode_request(encode(message, format), CONTENT_TYPES[format]) == message


@given(RESPONSE, st.sampled_from(FORMATS))
def test_an_answer_is_the_same_in_each_encoding(message: SyncResponse, format: Format) -> None:
    assert decode_response(encode(message, format), CONTENT_TYPES[format]) == message


@given(REQUEST)
def test_a_value_keeps_its_type_in_each_encoding(message: SyncRequest) -> None:
    # 1 == 1.0 == True in Python, but not for who reads the record.
    decoded = (decode_request(encode(message, each), CONTENT_TYPES[each]) for each in FORMATS)
    assert len({json.dumps(list(each.events), sort_keys=True) for each in decoded}) == 1


@given(st.binary(max_size=300), st.sampled_from(FORMATS))
def test_any_bytes_are_a_message_or_a_wire_error(body: bytes, format: Format) -> None:
    for decode in (decode_request, decode_response):
        with pytest.raises(WireError):
            decode(body, CONTENT_TYPES[format])


@given(REQUEST, st.sampled_from(FORMATS), st.data())
def test_an_edited_request_is_a_message_or_a_wire_error(
    message: SyncRequest, format: Format, data: st.DataObject
) -> None:
    body = bytearray(encode(message, format))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_request(bytes(body), CONTENT_TYPES[format])
    except WireError as error:
        assert str(error)
        return
    for item in [*decoded.events, *decoded.details]:
        try:
            json.dumps(record_from_json(item).payload, allow_nan=False).encode()
        except WireError as error:
            assert str(error)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_too_deep_or_too_large_is_refused_alike(format: Format) -> None:
    deep: Any = 1
    for _ in range(14):
        deep = [deep]
    for payload, message in (({"x": deep}, "deeper than 12"), ({"x": "y" * RECORD_BYTES_MAX}, "262144 are taken")):
        body = encode(request(events=[record(1, payload=payload)]), format)
        with pytest.raises(WireError, match=message):
            record_from_json(decode_request(body, CONTENT_TYPES[format]).events[0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "cannot be stored"),
        (float("inf"), "cannot be stored"),
        (2**64 - 1, "64 bits"),
        (b"bytes", "cannot be stored"),
        (msgpack.Timestamp(1), "cannot be stored"),
        (msgpack.ExtType(5, b"x"), "cannot be stored"),
    ],
)
def test_what_only_msgpack_can_say_spoils_its_record_and_not_the_request(value: object, message: str) -> None:
    document = json.loads(encode(request(events=[record(1), record(2)])))
    document["events"][0]["payload"] = {"x": value}
    decoded = decode_request(msgpack.packb(document), "application/msgpack")
    with pytest.raises(WireError, match=message):
        record_from_json(decoded.events[0])
    assert record_from_json(decoded.events[1]).seq == 2


def test_text_that_is_no_utf_8_spoils_its_record_and_not_the_request() -> None:
    body = encode(request(events=[record(1, payload={"x": "zz"}), record(2)]), "msgpack").replace(b"zz", b"\xff\xfe")
    decoded = decode_request(body, "application/msgpack")
    with pytest.raises(WireError, match="cannot be stored"):
        record_from_json(decoded.events[0])
    assert record_from_json(decoded.events[1]).seq == 2


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # an array that claims 4 billion items
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\x01\x02",  # a key that is no text
        msgpack.packb({"events": [[] for _ in range(1000)] * (CONTAINERS_MAX // 1000 + 1)}),
    ],
)
def test_hostile_msgpack_costs_no_memory(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_request(body, "application/msgpack")


def test_the_content_type_decides_and_its_name_is_read_with_care() -> None:
    assert format_of("application/json; charset=utf-8") == "json"
    assert format_of("Application/MSGPACK") == "msgpack"
    assert format_of("application/x-protobuf") == "protobuf"
    assert format_of("text/html") is None and format_of("") is None
    with pytest.raises(WireError, match="expected one of application/json"):
        decode_request(encode(request()), "text/plain")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"\n <html>", "application/msgpack"), (b"\xef\xbb\xbf<!DOCTYPE html>", ""), (b"Welcome", "text/html")],
)
def test_a_web_page_is_recognised(body: bytes, content_type: str) -> None:
    assert is_web_page(body, content_type)
    with pytest.raises(WireError, match="captive portal"):
        decode_response(body, content_type)


@pytest.mark.parametrize("format", FORMATS)
def test_no_message_looks_like_a_web_page(format: Format) -> None:
    assert not is_web_page(encode(request(), format), CONTENT_TYPES[format])


def test_a_format_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_format("protobuf") == "protobuf"
    with pytest.raises(ConfigError, match="expected one of json, msgpack, protobuf"):
        check_format("xml")

    def broken(name: str) -> None:
        raise OSError(5, "Input/output error")

    for find in (lambda name: None, broken):
        _has_protobuf.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", find)
            assert formats() == ("json", "msgpack")
            with pytest.raises(ConfigError, match="tinymlops\\[protobuf\\]"):
                check_format("protobuf")
    assert formats() == ("json", "msgpack", "protobuf")  # a disk that did not answer is asked again


def test_protobuf_is_imported_when_it_is_used_and_not_before() -> None:
    code = (
        "import sys, tinylcm.wire as wire; before = 'google.protobuf' in sys.modules;"
        "wire.encode(wire.SyncResponse({}, 's', 1.0, 2.0), 'protobuf'); print(before, 'google.protobuf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]


def test_what_does_not_fit_the_schema_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="cannot be sent as protobuf"):
        encode(request(events=[{"unknown": 1}]), "protobuf")


# Compression


@given(st.binary(max_size=5000).map(lambda data: data * 3))
def test_what_is_compressed_expands_to_the_same(data: bytes) -> None:
    packed = compress(data)
    if packed is None:
        assert len(data) < 1024 or len(gzip.compress(data, 1)) > 0.85 * len(data)
        return
    assert expand(packed, len(data)) == data
    assert packed == compress(data)  # no time in its header
    with pytest.raises(ExpansionError, match="expands to more than"):
        expand(packed, len(data) - 1)


def test_gzip_is_checked_to_its_end() -> None:
    packed = compress(b"a" * 5000)
    assert packed is not None
    for body, message in (
        (packed[:-1], "ends early"),
        (packed + b"x", "1 bytes follow"),
        (b"plain", "not the gzip"),
        (packed[:-8] + b"\0" * 8, "not the gzip"),
        (b"", "ends early"),
    ):
        with pytest.raises(WireError, match=message):
            expand(body, 10_000)
