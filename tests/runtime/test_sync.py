"""The sync core: bytes in, decisions out, no network."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ServerError, WireError
from tinylcm.sync import BATCH_BYTES_MAX, BATCH_BYTES_MIN, PLAIN_S, Known, Post, Sync, read_refusal
from tinylcm.types import Record
from tinylcm.wire import (
    CONTENT_TYPES,
    Anchor,
    Desired,
    Format,
    SyncRequest,
    SyncResponse,
    compress,
    decode_request,
    encode,
    expand,
)

EPOCH = "0123456789abcdef"


def make_sync(**changes: object) -> Sync:
    return Sync(interval_s=60, backoff_min_s=1, backoff_max_s=900, rng=random.Random(1), **changes)  # type: ignore[arg-type]


def record(seq: int) -> Record:
    return Record("alarm", EPOCH, seq, "boot", seq, {"value": seq})


JSON = {"content-type": "application/json"}


def ask(sync: Sync, *seqs: int, now_s: float = 0.0) -> Post:
    return sync.request(
        boot="boot",
        anchor=Anchor(1, 2.0),
        running=(),
        capabilities={},
        events=[record(seq) for seq in seqs],
        details=[],
        now_s=now_s,
    )


def read(post: Post) -> SyncRequest:
    body = expand(post.body, 1 << 20) if post.headers.get("Content-Encoding") == "gzip" else post.body
    return decode_request(body, post.headers["Content-Type"])


def answer(acked: tuple[str, int] | None = None, **changes: object) -> bytes:
    fields = {"server_instance": "i1", "server_time": 5.0, "next_sync_s": 0.0, **changes}
    return encode(SyncResponse({"events": acked, "details": None}, **fields))  # type: ignore[arg-type]


def test_a_request_carries_the_records_in_their_envelopes() -> None:
    request = read(ask(make_sync(), 1, 2))
    assert [item["seq"] for item in request.events] == [1, 2]  # type: ignore[index]
    assert request.wire == 1


def test_what_was_not_sent_cannot_be_acknowledged() -> None:
    sync = make_sync()
    ask(sync, 1, 2)
    with pytest.raises(WireError, match="was not sent"):
        sync.receive(answer((EPOCH, 3)), JSON, 0.0)
    assert sync.failures == 1
    assert sync.receive(answer((EPOCH, 2)), JSON, 0.0).acked == {"events": (EPOCH, 2)}
    assert sync.failures == 0


def test_desired_state_is_remembered_and_a_new_server_is_noticed() -> None:
    sync = make_sync(known=Known("i0", 7))
    assert read(ask(sync)).generation == 7
    outcome = sync.receive(answer(desired=Desired(9)), JSON, 0.0)
    assert outcome.server_changed and outcome.desired == Desired(9)
    assert sync.known.generation == 9
    ask(sync)
    assert sync.receive(answer(), JSON, 0.0).desired is None


def test_waits_grow_with_full_jitter_and_stay_bounded() -> None:
    sync = make_sync()
    waits = [sync.failed(0.0) for _ in range(60)]
    assert all(0 <= wait <= min(900, 2.0**index) for index, wait in enumerate(waits))
    assert max(waits) > 100


def test_retry_after_is_obeyed_and_a_permanent_refusal_waits_longest() -> None:
    sync = make_sync()
    assert sync.failed(10.0, ServerError("busy", retry_after_s=120)) >= 120
    assert sync.failed(10.0, ServerError("revoked", permanent=True)) == 900
    assert sync.next_s == 910


def test_the_server_may_ask_for_an_earlier_sync_but_not_for_a_later_one() -> None:
    sync = make_sync()
    ask(sync)
    sync.receive(answer(next_sync_s=5.0), JSON, 100.0)
    assert sync.next_s == 105
    ask(sync)
    sync.receive(answer(next_sync_s=5000.0), JSON, 100.0)
    assert sync.next_s == 160


def test_refusals_say_what_the_server_said() -> None:
    problem = json.dumps({"title": "Busy", "detail": "come back later"}).encode()
    error = read_refusal(503, {"retry-after": "7"}, problem)
    assert "come back later" in str(error) and error.retry_after_s == 7 and not error.permanent
    assert read_refusal(401, {}, b"").permanent
    assert "captive portal" in str(read_refusal(200, {}, b"<!DOCTYPE html><p>Welcome"))
    assert read_refusal(500, {"retry-after": "9" * 30}, b"").retry_after_s == 86400


@pytest.mark.parametrize(
    ("value", "date", "wait_s"),
    [
        ("Wed, 21 Oct 2015 07:30:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 120.0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 86400.0),
        ("Wed, 21 Oct 2015 07:30:00 GMT", "", None),  # this device's own clock may be years off
        ("soon", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("\xb2", "", None),
        ("-5", "", None),
    ],
)
def test_a_date_to_come_back_at_counts_from_the_servers_own(value: str, date: str, wait_s: float | None) -> None:
    assert read_refusal(503, {"retry-after": value, "date": date}, b"").retry_after_s == wait_s


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"content-type": "application/json"}, b"  <html><body>Please log in</body></html>"),
        (302, {"location": "http://login.example/"}, b""),
        (511, {}, b"{}"),
        (403, {"content-type": "text/html; charset=utf-8"}, b"Accept our terms"),
    ],
)
def test_a_captive_portal_is_recognised_whatever_it_claims_to_be(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    error = read_refusal(status, headers, body)
    assert "captive portal" in str(error) and error.status == status
    assert not error.permanent  # behind the portal is our server, which has not refused us
    if status == 200:
        sync = make_sync()
        ask(sync, 1)
        with pytest.raises(WireError, match="captive portal"):
            sync.receive(body, headers, 0.0)
        assert sync.failures == 1


@given(
    st.binary(max_size=200) | st.dictionaries(st.text(), st.integers()).map(lambda d: json.dumps(d).encode()),
    st.sampled_from([*CONTENT_TYPES.values(), "", "text/plain"]),
)
def test_any_answer_gives_an_outcome_or_a_wire_error(body: bytes, content_type: str) -> None:
    sync = make_sync()
    ask(sync, 1)
    with pytest.raises(WireError):
        sync.receive(body, {"content-type": content_type}, 0.0)


def test_a_link_that_fails_gets_smaller_batches_and_one_that_works_larger_ones() -> None:
    sync = make_sync()
    assert sync.batch_bytes == BATCH_BYTES_MAX
    sync.failed(0.0)
    assert sync.batch_bytes == BATCH_BYTES_MAX // 2
    for _ in range(40):
        sync.failed(0.0)
    assert sync.batch_bytes == BATCH_BYTES_MIN
    for _ in range(40):
        sync.receive(answer(), JSON, 0.0)
    assert sync.batch_bytes == BATCH_BYTES_MAX


@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_the_format_is_said_and_a_large_body_is_compressed(format: Format) -> None:
    sync = make_sync(format=format)
    small, large = ask(sync, 1), ask(sync, *range(1, 200))
    assert small.headers["Content-Type"] == CONTENT_TYPES[format] and "Content-Encoding" not in small.headers
    assert large.headers["Content-Encoding"] == "gzip" and large.headers["Accept-Encoding"] == "gzip"
    assert len(large.body) < 4000 and len(read(large).events) == 199
    plain = ask(make_sync(format=format, gzip=False), *range(1, 200))
    assert plain.headers.keys() == {"Content-Type", "Accept"} and len(read(plain).events) == 199


def test_a_compressed_answer_is_read_and_a_bomb_is_not() -> None:
    sync = make_sync()
    ask(sync, 1)
    reply = encode(
        SyncResponse({"events": (EPOCH, 1), "details": None}, "i1", 5.0, 0.0, downlink=("x" * 5000,)), "msgpack"
    )
    packed = compress(reply)
    assert packed is not None
    headers = {"content-type": "application/msgpack", "content-encoding": "gzip"}
    assert sync.receive(packed, headers, 0.0).acked == {"events": (EPOCH, 1)}
    bomb = compress(b" " * (64 << 20))
    assert bomb is not None and len(bomb) < 300_000
    for body in (bomb, packed[:-9], packed + b"more", b"no gzip"):
        with pytest.raises(WireError):
            sync.receive(body, headers, 0.0)


@pytest.mark.parametrize("status", [400, 415])
def test_a_server_that_knows_json_alone_gets_json_at_once_and_for_a_day(status: int) -> None:
    sync = make_sync()
    ask(sync, 1, now_s=50.0)
    assert sync.failed(50.0, ServerError("no", status=status)) == 0.0
    assert sync.next_s == 50.0 and sync.failures == 0
    post = ask(sync, *range(1, 200), now_s=50.0)
    assert post.headers["Content-Type"] == "application/json" and "Content-Encoding" not in post.headers
    assert sync.failed(51.0, ServerError("no", status=status)) >= 0.0
    assert sync.failures == 1  # JSON was refused too: it is no question of the format
    assert ask(sync, 1, now_s=50.0 + PLAIN_S).headers["Content-Type"] == "application/msgpack"
