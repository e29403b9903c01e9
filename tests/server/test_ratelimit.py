"""Buckets of tokens, and what a peer that asks too often is answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import Web, make_web
from tinysphere.ratelimit import RateLimit


def test_a_bucket_empties_and_fills_with_time() -> None:
    limit = RateLimit(per_s=2.0, burst=3)
    assert [limit.take("a", 0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert limit.take("b", 0.0) == 0.0  # a bucket each
    assert limit.wait_s("a", 0.25) == 0.25 and limit.take("a", 0.5) == 0.0
    assert [limit.take("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]  # never more than the burst


def test_a_clock_that_steps_back_gives_nothing_and_takes_nothing() -> None:
    limit = RateLimit(1.0, 1)
    assert limit.take("a", 100.0) == 0.0
    assert limit.take("a", 50.0) == 1.0 and limit.take("a", 50.5) == 0.5 and limit.take("a", 51.0) == 0.0


def test_buckets_are_bounded_and_those_not_used_go_first() -> None:
    limit = RateLimit(0.001, 1, keys_max=2)
    for key in ("a", "b", "a", "c"):
        limit.take(key, 0.0)
    assert limit.take("a", 0.0) > 0.0 and limit.take("b", 0.0) == 0.0


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 5), st.floats(0.1, 10))
def test_no_more_than_the_rate_and_the_burst_pass(waits: list[float], burst: int, per_s: float) -> None:
    limit, now_s, passed = RateLimit(per_s, burst), 0.0, 0
    for wait_s in waits:
        now_s += wait_s
        passed += limit.take("a", now_s) == 0.0
    assert passed <= burst + per_s * now_s + 1e-6


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path, device_requests_per_s=1.0, user_requests_per_s=1.0, failures_per_s=1.0, burst=5)
    with made.client:
        yield made


def test_a_device_that_asks_too_often_is_told_when_to_come_back(web: Web) -> None:
    _, key = web.enrol()
    _, other = web.enrol("other", "33" * 32)
    headers = {**key, "Content-Type": "application/json"}
    answers = [web.client.post("/api/v1/sync", content=web.sync_body(), headers=headers) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert answers[-1].headers["retry-after"] == "1" and "too often" in answers[-1].json()["detail"]
    assert web.client.post("/api/v1/sync", content=web.sync_body(), headers={**headers, **other}).status_code == 200
    web.kit.clock.advance(1.0)
    assert web.client.post("/api/v1/sync", content=web.sync_body(), headers=headers).status_code == 200


def test_a_person_has_a_bucket_too_and_public_addresses_have_none(web: Web) -> None:
    headers = web.bearer(web.kit.token())
    assert [web.client.get("/api/v1/devices", headers=headers).status_code for _ in range(6)] == [200] * 5 + [429]
    assert {web.client.get("/healthz").status_code for _ in range(20)} == {200}


def test_a_device_with_a_wrong_key_locks_out_no_other_of_its_address(web: Web) -> None:
    device, key = web.enrol()
    wrong = web.bearer(f"{device}.{'0' * 64}")
    unknown = web.bearer(f"d{'0' * 12}.{'0' * 64}")
    for headers in (wrong, unknown):
        assert [web.client.get(f"/api/v1/packages/{'0' * 64}", headers=headers).status_code for _ in range(6)] == [
            *[401] * 5,
            429,
        ]
    _, other = web.enrol("other", "33" * 32)
    headers = {**other, "Content-Type": "application/json"}
    assert web.client.post("/api/v1/sync", content=web.sync_body(), headers=headers).status_code == 200
    assert key


def test_who_guesses_keys_is_slowed_down_and_a_right_key_waits_with_it(web: Web) -> None:
    wrong = web.bearer("ts_" + "0" * 40)
    right = web.bearer(web.kit.token())
    statuses = [web.client.get("/api/v1/devices", headers=wrong).status_code for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    assert web.client.get("/api/v1/devices", headers=right).status_code == 429  # or it would tell that the key is right
    web.kit.clock.advance(2.0)
    assert web.client.get("/api/v1/devices", headers=right).status_code == 200
