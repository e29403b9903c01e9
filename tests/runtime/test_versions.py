"""Old and new talk to each other: what other versions said was recorded, and is replayed here."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import Web, make_web
from kit import record as make_record
from tinylcm.sync import Sync, read_refusal
from tinylcm.types import Record
from tinylcm.wire import WIRE_VERSION, Anchor, decode_response

FOLDER = Path(__file__).parent.parent / "data" / "wire"
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
SPOKEN = [version for version in RECORDED if version != "next"]  # by what is in the world; see scripts/record_wire.py
EPOCH = "00000000000000aa"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path)
    with made.client:
        yield made


def exchange(version: str, name: str) -> tuple[dict[str, str], bytes, dict[str, Any], bytes]:
    found = RECORDED[version]["exchanges"][name]
    asked, answered = found["request"], found["answer"]
    return asked["headers"], base64.b64decode(asked["body"]), answered, base64.b64decode(answered["body"])


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("name", ["json", "msgpack", "gzip"])
def test_this_server_serves_every_device_that_there_was(web: Web, version: str, name: str) -> None:
    headers, body, _, _ = exchange(version, name)
    _, key = web.enrol()
    answer = web.client.post("/api/v1/sync", content=body, headers={**key, **headers})
    assert answer.status_code == 200
    response = decode_response(answer.content, answer.headers["content-type"])
    assert dict(response.acked) == {"events": (EPOCH, 3), "details": (EPOCH, 1)} and not response.refused


@pytest.mark.parametrize("version", SPOKEN)
def test_a_device_of_the_next_version_learns_which_ones_are_spoken(web: Web, version: str) -> None:
    headers, body, answered, said = exchange(version, "next version")
    assert answered["status"] == 400 and b"speaks versions 1 to 1, got 2" in said
    _, key = web.enrol()
    answer = web.client.post("/api/v1/sync", content=body, headers={**key, **headers})
    assert answer.status_code == 400 and "versions 1 to 1, got 2" in answer.json()["detail"]


def sync_with(version: str, **changes: Any) -> tuple[Sync, bool]:
    """This device with a recorded server; whether its first answer was taken."""
    sync = Sync(60, 1, 900, **changes)
    for _ in range(3):
        post = sync.request(
            boot="b1",
            anchor=Anchor(1, 2.0),
            running=(),
            capabilities={},
            events=[Record(**make_record(seq)) for seq in (1, 2, 3)],
            details=[Record(**make_record(1, "summary", {}))],
            now_s=0.0,
        )
        kind = post.headers["Content-Type"].split("/")[1]
        name = "gzip" if "Content-Encoding" in post.headers else kind
        if sync.wire > WIRE_VERSION and json.loads(post.body)["wire"] > WIRE_VERSION:
            name = "next version"
        _, _, answered, body = exchange(version, name)
        headers = {"content-type": answered["content_type"]}
        if answered["status"] == 200:
            outcome = sync.receive(body, headers, 0.0)
            assert outcome.acked == {"events": (EPOCH, 3), "details": (EPOCH, 1)}
            assert outcome.desired is not None and outcome.desired.models[0].model == "gesture"
            return sync, sync.failures == 0
        assert sync.failed(0.0, read_refusal(answered["status"], headers, body)) == 0.0
    return sync, False


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_this_device_syncs_with_every_server_that_there_was(version: str, format: str) -> None:
    sync, done = sync_with(version, format=format)
    assert done
    assert (sync.plain_until_s > 0) == (version == "json-only" and format == "msgpack")


@pytest.mark.parametrize("version", SPOKEN)
def test_a_device_of_the_next_version_speaks_what_an_older_server_does(version: str) -> None:
    sync, done = sync_with(version, format="json", gzip=False, wire=WIRE_VERSION + 1)
    assert done and sync.older_wire == WIRE_VERSION and sync.older_until_s > 0


def test_a_server_that_speaks_the_next_version_is_spoken_to_in_it() -> None:
    sync, done = sync_with("next", format="json", gzip=False, wire=WIRE_VERSION + 1)
    assert done and sync.older_until_s < 0


def test_a_later_server_says_more_and_this_device_takes_what_it_knows() -> None:
    sync, _ = sync_with("next", format="json")
    desired = sync.known.desired
    assert desired is not None and desired.models[0].version == "1.0.0"
    _, _, _, body = exchange("next", "json")
    said = json.loads(body)
    assert said["not_yet_invented"] and said["desired"]["models"][0]["not_yet_invented"]  # it did say more


def test_a_server_that_no_longer_speaks_this_version_is_named_and_the_wait_grows() -> None:
    detail = f"request.wire: this side speaks versions {WIRE_VERSION + 1} to {WIRE_VERSION + 2}, got {WIRE_VERSION}"
    error = read_refusal(400, {"content-type": "application/problem+json"}, json.dumps({"detail": detail}).encode())
    assert "install a newer TinyLCM" in str(error) and error.spoken == (WIRE_VERSION + 1, WIRE_VERSION + 2)
    sync = Sync(60, 1, 900)
    for _ in range(20):
        sync.failed(0.0, error)
    assert sync.failures == 20 and sync.older_until_s < 0 and sync.plain_until_s < 0
