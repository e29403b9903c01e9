"""Commands reach each device that is meant, in order, until it has them or their time is over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from kit import EPOCH, Kit, Web, make_kit, make_web, record, request
from tinylcm import wire
from tinylcm.commands import COMMANDS, ITEMS_MAX, Ledger
from tinylcm.types import Json
from tinysphere import commands
from tinysphere.commands import CommandRequest, CommandView
from tinysphere.errors import BadRequestError, InvalidError, NotFoundError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def enrol(kit: Kit, *names: str) -> list[str]:
    token = kit.join(uses=len(names))
    return [kit.enrol(name, hashlib.sha256(name.encode()).hexdigest(), token) for name in names]


def give(
    kit: Kit, selector: str = "all", name: str = "ping", expires_in_s: float = 60.0, **args: object
) -> CommandView:
    asked = CommandRequest(selector, name, args, expires_in_s)
    now_s = kit.clock.wall_s()
    return kit.db.write(lambda connection: commands.create_in(connection, asked, "user:me", now_s))


def poll(kit: Kit, device: str, cursor: int = 0, **changes: object) -> list[Any]:
    return list(kit.sync(device, downlink_cursor=cursor, **changes).downlink)


def result(command: int, state: str = "done", **changes: object) -> dict[str, object]:
    return {"command": command, "name": "ping", "state": state, "detail": "", "result": {"x": 1}, **changes}


def states(kit: Kit, command: int) -> dict[str, str]:
    view = commands.get_command(kit.db, command, kit.clock.wall_s())
    return {answer.device_name: answer.state for answer in view.devices}


def test_a_command_goes_to_those_who_are_meant_until_they_have_it(kit: Kit) -> None:
    one, two = enrol(kit, "one", "two")
    first = give(kit, "name=one", "rollback", model="m")
    second = give(kit)
    assert first.states == {"waiting": 1} and second.states == {"waiting": 2}
    for _ in range(2):  # the answer may have been lost
        assert poll(kit, one) == [
            {"id": first.id, "type": "command", "name": "rollback", "args": {"model": "m"}, "expires_in_s": 60.0},
            {"id": second.id, "type": "command", "name": "ping", "args": {}, "expires_in_s": 60.0},
        ]
    assert [item["id"] for item in poll(kit, two)] == [second.id]
    assert states(kit, second.id) == {"one": "sent", "two": "sent"}
    assert [item["id"] for item in poll(kit, one, first.id)] == [second.id]
    assert poll(kit, one, second.id) == []
    assert states(kit, first.id) == {"one": "received"} and states(kit, second.id) == {"one": "received", "two": "sent"}
    assert poll(kit, one) == []  # what was received is not sent again to a device that has forgotten its cursor


def test_the_time_that_is_left_goes_with_it_and_then_it_is_over(kit: Kit) -> None:
    (device,) = enrol(kit, "one")
    early, late = give(kit, expires_in_s=60), give(kit, expires_in_s=600)
    kit.clock.advance(45)
    assert [item["expires_in_s"] for item in poll(kit, device)] == [15, 555]
    kit.clock.advance(15)
    assert states(kit, early.id) == {"one": "expired"}  # as is shown before anybody comes
    assert [item["id"] for item in poll(kit, device)] == [late.id]
    assert states(kit, early.id) == {"one": "expired"} and states(kit, late.id) == {"one": "sent"}


def test_the_first_answer_counts(kit: Kit) -> None:
    one, two = enrol(kit, "one", "two")
    given = give(kit, "name=one")
    poll(kit, one)
    answers = [record(1, "command_result", result(given.id)), record(2, "command_result", result(given.id, "failed"))]
    poll(kit, one, given.id, events=answers)
    poll(kit, two, events=[record(1, "command_result", result(given.id, "failed"))])  # never asked
    answer = commands.get_command(kit.db, given.id, kit.clock.wall_s()).devices
    assert [(item.device_name, item.state, item.result) for item in answer] == [("one", "done", {"x": 1})]
    assert poll(kit, one) == []


def test_results_of_commands_that_are_not_known_are_kept_as_records(kit: Kit) -> None:
    (device,) = enrol(kit, "one")
    assert kit.sync(device, events=[record(1, "command_result", result(5))]).refused == ()


@pytest.mark.parametrize(
    "payload",
    [{}, result(1, "flying"), result(-1), {**result(1), "command": "1"}, {**result(1), "detail": "x" * 20_000}],
)
def test_results_that_say_nothing_are_refused(kit: Kit, payload: dict[str, object]) -> None:
    (device,) = enrol(kit, "one")
    answer = kit.sync(device, events=[record(1, "command_result", payload), record(2)])
    assert [item.seq for item in answer.refused] == [1] and answer.acked["events"] == (EPOCH, 2)


def test_at_most_a_hundred_go_at_once_in_order(kit: Kit) -> None:
    (device,) = enrol(kit, "one")
    given = [give(kit).id for _ in range(ITEMS_MAX + 20)]
    assert given == sorted(set(given))
    found = [item["id"] for item in poll(kit, device)]
    assert found == given[:ITEMS_MAX]
    assert [item["id"] for item in poll(kit, device, found[-1])] == given[ITEMS_MAX:]


def test_ids_rise_with_time_so_that_a_restored_server_is_heard(kit: Kit) -> None:
    (device,) = enrol(kit, "one")
    lost = give(kit)
    poll(kit, device)
    kit.db.write(lambda connection: connection.execute("DELETE FROM command") and None)
    kit.db.write(lambda connection: connection.execute("DELETE FROM device_command") and None)
    kit.clock.advance(1)
    assert [item["id"] for item in poll(kit, device, lost.id)] == [] and give(kit).id > lost.id
    assert len(poll(kit, device, lost.id)) == 1


@pytest.mark.parametrize(
    ("asked", "error", "problem"),
    [
        (CommandRequest("everywhere", "ping"), BadRequestError, "selector"),
        (CommandRequest("name=nobody", "ping"), InvalidError, "matches no device"),
        (CommandRequest("all", "self_destruct"), InvalidError, "known: ping"),
        (CommandRequest("all", "rollback"), InvalidError, "rollback.model: is missing"),
        (CommandRequest("all", "ping", {"loud": True}), InvalidError, "loud"),
        (CommandRequest("all", "ping", {}, 0.0), InvalidError, "expires_in_s"),
        (CommandRequest("all", "ping", {}, 1e12), InvalidError, "expires_in_s"),
        (CommandRequest("all", "ping", {}, float("nan")), InvalidError, "expires_in_s"),
    ],
)
def test_what_cannot_be_given_says_why(kit: Kit, asked: CommandRequest, error: type[Exception], problem: str) -> None:
    enrol(kit, "one")
    with pytest.raises(error, match=problem):
        kit.db.write(lambda connection: commands.create_in(connection, asked, "me", 1.0))
    with pytest.raises(NotFoundError):
        commands.get_command(kit.db, 77, 1.0)


def test_commands_are_listed_newest_first(kit: Kit) -> None:
    enrol(kit, "one")
    given = [give(kit).id for _ in range(3)]
    page = commands.list_commands(kit.db, None, 2, kit.clock.wall_s())
    rest = commands.list_commands(kit.db, page.next, 2, kit.clock.wall_s())
    assert [item.id for item in (*page.items, *rest.items)] == given[::-1]


# Over HTTP, with a device's ledger at the other end --------------------------------------------------------


class Far:
    """A device of which only the ledger is real; its answers may get lost."""

    def __init__(self, web: Web, folder: Path) -> None:
        self.web, self.clock, self.seq = web, ManualClock(), 0
        self.id, self.key = web.enrol()
        self.ledger = Ledger(folder / "commands.json", self.id, self.clock)
        self.waiting: list[dict[str, object]] = []
        self.ran: list[str] = []

    def sync(self, *, is_lost: bool = False) -> None:
        asked = request(downlink_cursor=self.ledger.cursor, events=self.waiting)
        headers = {**self.key, "Content-Type": "application/x-protobuf"}
        answer = self.web.client.post("/api/v1/sync", content=wire.encode(asked, "protobuf"), headers=headers)
        assert answer.status_code == 200, answer.text
        if not is_lost:
            self.waiting = []
            self.ledger.receive(wire.decode_response(answer.content, answer.headers["content-type"]).downlink)

    def run(self) -> None:
        def report(payload: dict[str, Json]) -> None:
            self.seq += 1
            self.waiting.append(record(self.seq, "command_result", payload))

        self.ledger.run({name: lambda args, name=name: self.ran.append(name) for name in COMMANDS}, report)  # type: ignore[misc]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path / "server" if (tmp_path / "server").mkdir() is None else tmp_path)
    with made.client:
        yield made


def test_lost_answers_and_repeats_run_each_command_once(web: Web, tmp_path: Path) -> None:
    device = Far(web, tmp_path)
    admin = web.bearer(web.kit.token("operator"))
    body = {"selector": "all", "name": "capture", "args": {"windows": 3}, "expires_in_s": 100}
    key = {**admin, "Idempotency-Key": "once"}
    made = [web.client.post("/api/v1/commands", json=body, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 201] and made[0].json() == made[1].json()
    number = made[0].json()["id"]
    rhythm: Sequence[bool] = (True, False, True, True, False, False)
    for is_lost in rhythm:
        device.sync(is_lost=is_lost)
        device.run()
    assert device.ran == ["capture"]
    view = web.client.get(f"/api/v1/commands/{number}", headers=admin).json()
    assert view["states"] == {"done": 1} and view["devices"][0]["device_id"] == device.id
    listed = web.client.get("/api/v1/commands", headers=admin).json()["items"]
    assert [item["id"] for item in listed] == [number]
    audit = web.client.get("/api/v1/audit", headers=web.bearer(web.kit.token())).json()["items"]
    assert "command.create" in [item["what"] for item in audit]


def test_a_command_over_http_that_is_wrong_is_a_problem_document(web: Web) -> None:
    admin = web.bearer(web.kit.token("operator"))
    web.enrol()
    for body, status in (
        ({"selector": "all", "name": "no_such"}, 422),
        ({"selector": "???", "name": "ping"}, 400),
        ({"selector": "all", "name": "ping", "args": [1]}, 422),
        ({"selector": "all", "name": "ping", "now": True}, 422),
        ({"selector": "all", "name": "ping", "expires_in_s": 1e999}, 400),
    ):
        answer = web.client.post("/api/v1/commands", content=__import__("json").dumps(body), headers=admin)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert web.client.get("/api/v1/commands/1", headers=admin).status_code == 404
