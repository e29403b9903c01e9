"""The sync core: bytes in, decisions out, no network."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ServerError, WireError
from tinylcm.sync import BATCH_BYTES_MAX, BATCH_BYTES_MIN, Known, Sync, read_refusal
from tinylcm.types import Record
from tinylcm.wire import Anchor, Desired, SyncResponse, decode_request, encode

EPOCH = "0123456789abcdef"


def make_sync(**changes: object) -> Sync:
    return Sync(interval_s=60, backoff_min_s=1, backoff_max_s=900, rng=random.Random(1), **changes)  # type: ignore[arg-type]


def record(seq: int) -> Record:
    return Record("alarm", EPOCH, seq, "boot", seq, {"value": seq})


def ask(sync: Sync, *seqs: int) -> bytes:
    return sync.request(
        boot="boot",
        anchor=Anchor(1, 2.0),
        running=(),
        capabilities={},
        events=[record(seq) for seq in seqs],
        details=[],
    )


def answer(acked: tuple[str, int] | None = None, **changes: object) -> bytes:
    fields = {"server_instance": "i1", "server_time": 5.0, "next_sync_s": 0.0, **changes}
    return encode(SyncResponse({"events": acked, "details": None}, **fields))  # type: ignore[arg-type]


def test_a_request_carries_the_records_in_their_envelopes() -> None:
    request = decode_request(ask(make_sync(), 1, 2))
    assert [item["seq"] for item in request.events] == [1, 2]  # type: ignore[index]
    assert request.wire == 1


def test_what_was_not_sent_cannot_be_acknowledged() -> None:
    sync = make_sync()
    ask(sync, 1, 2)
    with pytest.raises(WireError, match="was not sent"):
        sync.receive(answer((EPOCH, 3)), 0.0)
    assert sync.failures == 1
    assert sync.receive(answer((EPOCH, 2)), 0.0).acked == {"events": (EPOCH, 2)}
    assert sync.failures == 0


def test_desired_state_is_remembered_and_a_new_server_is_noticed() -> None:
    sync = make_sync(known=Known("i0", 7))
    assert decode_request(ask(sync)).generation == 7
    outcome = sync.receive(answer(desired=Desired(9)), 0.0)
    assert outcome.server_changed and outcome.desired == Desired(9)
    assert sync.known.generation == 9
    ask(sync)
    assert sync.receive(answer(), 0.0).desired is None


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
    sync.receive(answer(next_sync_s=5.0), 100.0)
    assert sync.next_s == 105
    ask(sync)
    sync.receive(answer(next_sync_s=5000.0), 100.0)
    assert sync.next_s == 160


def test_refusals_say_what_the_server_said() -> None:
    problem = json.dumps({"title": "Busy", "detail": "come back later"}).encode()
    error = read_refusal(503, {"Retry-After": "7"}, problem)
    assert "come back later" in str(error) and error.retry_after_s == 7 and not error.permanent
    assert read_refusal(401, {}, b"").permanent
    assert "captive portal" in str(read_refusal(200, {}, b"<!DOCTYPE html><p>Welcome"))
    assert read_refusal(500, {"Retry-After": "9" * 30}, b"").retry_after_s == 86400


@given(st.binary(max_size=200) | st.dictionaries(st.text(), st.integers()).map(lambda d: json.dumps(d).encode()))
def test_any_answer_gives_an_outcome_or_a_wire_error(body: bytes) -> None:
    sync = make_sync()
    ask(sync, 1)
    with pytest.raises(WireError):
        sync.receive(body, 0.0)


def test_a_link_that_fails_gets_smaller_batches_and_one_that_works_larger_ones() -> None:
    sync = make_sync()
    assert sync.batch_bytes == BATCH_BYTES_MAX
    sync.failed(0.0)
    assert sync.batch_bytes == BATCH_BYTES_MAX // 2
    for _ in range(40):
        sync.failed(0.0)
    assert sync.batch_bytes == BATCH_BYTES_MIN
    for _ in range(40):
        sync.receive(answer(), 0.0)
    assert sync.batch_bytes == BATCH_BYTES_MAX
