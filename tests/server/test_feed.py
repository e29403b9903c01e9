"""What happens, read from a cursor: nothing is missed, nothing comes twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import sphere
from kit import NOW, Kit, Web, alarm, make_kit, make_web, record
from tinysphere import auth, commands, feed, retention
from tinysphere.client import Client, ClientError, Fields
from tinysphere.errors import BadRequestError
from tinysphere.feed import Cursor, Wanted, after, begin, parse_cursor
from tinysphere.sql import Connection

DAY_S = 86_400.0


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def told(kit: Kit, cursor: Cursor, wanted: Wanted | None = None) -> tuple[list[tuple[str, object]], Cursor]:
    events, cursor, _ = after(kit.db, cursor, wanted or Wanted())
    return [
        (event.type, event.body.get("what") or event.body.get("state") or event.device) for _, event in events
    ], cursor


def test_what_devices_and_people_do_is_told(kit: Kit) -> None:
    cursor, missing = begin(kit.db, None, None, NOW)
    assert missing == ""
    device = kit.enrol()
    kit.upload()
    kit.deploy()
    request = commands.CommandRequest("all", "ping")
    number = kit.db.write(lambda connection: commands.create_in(connection, request, "test", NOW)).id
    step = {"deployment": 1, "model": "gesture", "version": "1.0.0", "sha256": "0" * 64, "state": "trial", "reason": ""}
    answer = {"command": number, "name": "ping", "state": "done", "detail": "", "result": {"deep": [1]}}
    events = [
        record(1, "alarm", alarm()),
        record(2, "deployment", step),
        record(3, "command_result", answer),
        record(4, "config_result", {"version": 1, "state": "refused", "reason": "x" * 900}),
    ]
    kit.sync(device, events=events)
    found, end = told(kit, cursor)
    assert found[:4] == [
        ("change", "device.enrol"), ("change", "model.upload"), ("change", "deployment.create"),
        ("change", "command.create"),
    ]  # fmt: skip
    assert sorted(found[4:]) == [("command", "done"), ("config", "refused"), ("deployment", "trial"), ("drift", device)]
    assert told(kit, end)[0] == []
    drift = after(kit.db, cursor, Wanted(frozenset({"drift"})))[0][0][1]
    assert (drift.device, drift.model, drift.body["monitor"]) == (device, "gesture", "input")
    config = after(kit.db, cursor, Wanted(frozenset({"config"})))[0][0][1]
    assert len(str(config.body["reason"])) == feed.TEXT_CHARACTERS_MAX
    assert told(kit, cursor, Wanted(device="dother"))[0] == []
    assert len(told(kit, cursor, Wanted(model="gesture"))[0]) == 2


def test_nothing_is_told_that_only_admins_may_know(kit: Kit) -> None:
    cursor, _ = begin(kit.db, None, None, NOW)
    kit.token("viewer")
    join = kit.join()
    kit.enrol(token=join)
    events, _, _ = after(kit.db, cursor, Wanted())
    assert [event.body["what"] for _, event in events] == ["device.enrol"]
    assert join.split("_")[1] not in json.dumps([event.body for _, event in events])


def test_sends_that_come_again_are_told_once(kit: Kit) -> None:
    device = kit.enrol()
    cursor, _ = begin(kit.db, None, None, NOW)
    for _ in range(2):
        kit.sync(device, events=[record(1, "alarm", alarm())])
    assert told(kit, cursor)[0] == [("drift", device)]


def test_a_follower_goes_on_where_it_was(kit: Kit) -> None:
    cursor, _ = begin(kit.db, None, None, NOW)
    device = kit.enrol()
    kit.sync(device, events=[record(i, "alarm", alarm(window=i)) for i in range(1, 31)])  # so many go by COPY
    events, _, more = after(kit.db, cursor, Wanted(frozenset({"drift"})))
    assert len(events) == 30 and not more
    text = str(events[0][0])
    assert parse_cursor(text) == events[0][0]
    again, missing = begin(kit.db, text, 7 * DAY_S, NOW)
    assert missing == "" and [place for place, _ in after(kit.db, again, Wanted())[0]] == [p for p, _ in events[1:]]


def test_who_comes_too_late_or_from_elsewhere_is_told(kit: Kit) -> None:
    cursor, _ = begin(kit.db, None, None, NOW)
    assert begin(kit.db, str(cursor), 7 * DAY_S, NOW + 8 * DAY_S)[1] == "the id is older than the 7 days that are kept"
    assert begin(kit.db, str(cursor), None, NOW + 8 * DAY_S)[1] == ""
    other, missing = begin(kit.db, f"{'0' * 8}-5-6-7", None, NOW)
    assert "another database" in missing and (other.xact, other.id) == (0, 0)
    for wrong in ("", "x", "00000000-1-2", "00000000-1-2-3-4", f"{'0' * 8}-{1 << 63}-1-1"):
        with pytest.raises(BadRequestError, match="Last-Event-ID"):
            parse_cursor(wrong)
    assert "feed" in retention.KINDS and retention.DEFAULTS["feed"] == 7.0


def test_no_follower_passes_what_is_committed_later(kit: Kit, on_database: str) -> None:
    """Two writers: the one that was numbered first commits last."""
    if on_database != "postgresql":
        assert told(kit, begin(kit.db, None, None, NOW)[0])[0] == []  # SQLite has one writer
        return
    from tinysphere.db import Database

    other = Database(kit.db.where)
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        feed.note(connection, "change", NOW, what="first")
        begun.set()
        assert go.wait(20)

    try:
        cursor, _ = begin(kit.db, None, None, NOW)
        future = other.submit(slow)
        assert begun.wait(20)
        kit.db.write(lambda connection: feed.note(connection, "change", NOW, what="second"))
        early, cursor = told(kit, cursor)
        go.set()
        future.result(20)
        late, _ = told(kit, cursor)
        assert early == [] and late == [("change", "first"), ("change", "second")]
    finally:
        go.set()
        other.close()


# over HTTP ------------------------------------------------------------------------------------------------


def read_stream(text: str) -> list[dict[str, str]]:
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [block for block in blocks if "data" in block]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(
        tmp_path, events_life_s=0.4, events_poll_s=0.05, events_heartbeat_s=0.1, events_connections_each_max=1
    )
    with made.client:
        yield made


def test_events_come_as_a_stream_that_can_be_resumed(web: Web) -> None:
    viewer = web.bearer(web.kit.token("viewer"))
    answer = web.client.get("/api/v1/events", headers=viewer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("retry: 3000\n\n") and ": alive\n\n" in answer.text
    ready = read_stream(answer.text.replace(": alive\n\n", ""))
    assert [event["event"] for event in ready] == ["ready"]
    device = web.kit.enrol()
    web.kit.sync(device, events=[record(1, "alarm", alarm())])
    resumed = {**viewer, "Last-Event-ID": ready[0]["id"]}
    text = web.client.get("/api/v1/events", headers=resumed).text
    events = read_stream(text.replace(": alive\n\n", ""))
    assert [event["event"] for event in events] == ["ready", "change", "drift"]
    assert json.loads(events[2]["data"])["device"] == device
    query = f"/api/v1/events?types=drift&after={ready[0]['id']}"
    assert "event: change" not in web.client.get(query, headers=viewer).text
    assert web.client.get("/api/v1/events?types=weather", headers=viewer).status_code == 400
    assert web.client.get("/api/v1/events", headers={**viewer, "Last-Event-ID": "7"}).status_code == 400
    foreign = {**viewer, "Last-Event-ID": "00000000-1-1-1"}
    assert "event: missing" in web.client.get("/api/v1/events", headers=foreign).text
    assert web.client.app.state.server.followers.count == 0  # type: ignore[attr-defined]


def test_a_device_may_not_follow(web: Web) -> None:
    assert web.client.get("/api/v1/events", headers=web.enrol()[1]).status_code == 403


def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    web = make_web(tmp_path, events_life_s=20.0, events_poll_s=0.05, events_heartbeat_s=0.2)
    with web.client:
        token = web.kit.token("viewer")
        ended = threading.Timer(0.5, lambda: auth.revoke_token(web.kit.db, token.split("_")[1], "test", NOW))
        ended.start()
        began_s = time.monotonic()
        answer = web.client.get("/api/v1/events", headers=web.bearer(token))
        ended.join()
        assert answer.status_code == 200 and 0.4 < time.monotonic() - began_s < 10
        assert web.client.get("/api/v1/events", headers=web.bearer(token)).status_code == 401


def following(stream: Iterator[Fields]) -> Fields:
    """The next event that is more than the beginning of a stream."""
    return next(event for event in stream if event["event"] != "ready")


def test_a_real_server_streams_to_the_client_and_stops_at_once(tmp_path: Path) -> None:
    """Bounded, resumed after a restart, ended when the token is revoked or the server stops."""
    with sphere(tmp_path) as running, Client(running.url, running.token, timeout_s=30) as client:
        stream = client.follow()
        ready = next(stream)
        assert ready["event"] == "ready"
        client.set_group("berlin", "site=berlin")
        first = following(stream)
        assert first["event"] == "change" and first["body"] == {"what": "group.set", "target": "berlin site=berlin"}
        more = [client.follow(again=False) for _ in range(8)]
        for one in more[:-1]:
            next(one)
        with pytest.raises(ClientError, match="8 times already") as caught:
            next(more[-1])
        assert caught.value.status == 429
        running.stop()  # uvicorn waits for its connections: the streams end by themselves
        for one in more[:-1]:
            with pytest.raises((StopIteration, ClientError)):
                next(one)
        running.start()
        client.set_group("bonn", "site=bonn")
        assert following(stream)["body"] == {"what": "group.set", "target": "bonn site=bonn"}
        stream.close()
