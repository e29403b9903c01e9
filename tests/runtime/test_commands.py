"""Commands run at most once and are always answered, whatever is lost, repeated, cut off or made up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from cuts import Cutter, Killed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinylcm.commands import (
    COMMANDS,
    EXPIRES_S_MAX,
    ITEMS_MAX,
    RESULT_BYTES_MAX,
    WAITING_MAX,
    Ledger,
    check_args,
)
from tinylcm.errors import DeviceError, JournalFullError, ModelError, WireError


def command(number: int, name: str = "ping", expires_in_s: float = 60.0, **args: object) -> dict[str, Any]:
    return {"id": number, "type": "command", "name": name, "args": args, "expires_in_s": expires_in_s}


class Bench:
    """A ledger with a world in which commands have effects."""

    def __init__(self, folder: Path, clock: ManualClock | None = None, owner: str = "d1") -> None:
        self.path, self.clock, self.owner = folder / "commands.json", clock or ManualClock(), owner
        self.done: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.ledger = self.restart()

    def restart(self, boot: str | None = None) -> Ledger:
        if boot is not None:
            self.clock = ManualClock(boot=boot)
        self.ledger = Ledger(self.path, self.owner, self.clock)
        return self.ledger

    def handler(self, name: str) -> Any:
        def act(args: Any) -> Any:
            self.done.append(name)
            return {"did": name, **args}

        return act

    def run(self) -> int:
        return self.ledger.run({name: self.handler(name) for name in COMMANDS}, self.reports.append)

    @property
    def states(self) -> list[tuple[int, str]]:
        return [(report["command"], report["state"]) for report in self.reports]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_commands_run_in_order_once_and_are_answered(bench: Bench) -> None:
    items = [command(3), command(7, "rollback", model="m"), command(5, "flush")]
    assert bench.ledger.receive(items) == 3 and bench.ledger.cursor == 7
    assert bench.ledger.receive(items) == 0  # the answer was lost, and came again
    assert bench.run() == 3 and bench.run() == 0
    assert bench.done == ["ping", "flush", "rollback"]
    assert bench.reports[2] == {
        "command": 7, "name": "rollback", "state": "done", "detail": "", "result": {"did": "rollback", "model": "m"},
    }  # fmt: skip
    bench.restart()
    assert bench.ledger.receive(items) == 0 and bench.run() == 0 and bench.ledger.cursor == 7


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (command(1, "self_destruct"), "known: ping"),
        (command(1, "rollback"), "rollback.model: is missing"),
        (command(1, "rollback", model=3), "expected str"),
        (command(1, "rollback", model="m", force=True), "force: is not known"),
        (command(1, "ping", loud=True), "loud"),
        (command(1, "capture", windows=0), "windows"),
        (command(1, "capture", windows=1 << 40), "windows"),
        (command(1, "log_level", level="shout", for_s=5), "expected one of debug"),
        (command(1, "log_level", level="debug", for_s=1e9), "for_s"),
        (command(1, "log_level", level="debug", for_s=float("nan")), "finite"),
        (command(1, "ping", -1.0), "expires_in_s"),
        (command(1, "ping", 1e18), "expires_in_s"),
        (command(1, "ping", float("inf")), "expires_in_s"),
        ({"id": 1, "type": "command", "name": "ping"}, "expires_in_s: is missing"),
        ({**command(1), "args": [1]}, "expected a table"),
        ({**command(1), "name": ["ping"]}, "expected str"),
        ({**command(1), "name": "\ud800" * 5000}, "name"),
        ({"id": 1, "type": "command"}, "missing"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_reason(bench: Bench, item: dict[str, Any], problem: str) -> None:
    bench.ledger.receive([item, command(2)])
    bench.restart()
    assert bench.run() == 2
    assert bench.states == [(1, "refused"), (2, "done")] and bench.done == ["ping"]
    assert problem in bench.reports[0]["detail"] and len(bench.reports[0]["detail"]) <= 1000
    json.dumps(bench.reports).encode()


def test_items_of_another_kind_are_passed_by(bench: Bench) -> None:
    assert bench.ledger.receive([{"type": "not_yet_invented", "id": 1}, command(2)]) == 1
    assert bench.ledger.cursor == 2 and bench.run() == 1


@pytest.mark.parametrize(
    "item", [None, 7, "text", [], {}, *({"id": number} for number in ("1", True, 0, -5, 1.5, 1 << 64))]
)
def test_an_item_that_cannot_be_named_changes_nothing(bench: Bench, item: object) -> None:
    assert bench.ledger.receive([item]) == 0 and bench.ledger.cursor == 0 and not bench.path.exists()
    assert bench.ledger.receive([item, command(1)]) == 1


def test_a_million_items_are_taken_piece_by_piece(bench: Bench) -> None:
    items = [command(number) for number in range(1, 1_000_001)]
    assert bench.ledger.receive(items) == ITEMS_MAX == bench.ledger.cursor
    assert bench.ledger.receive(items[ITEMS_MAX:]) == ITEMS_MAX
    assert bench.ledger.waiting == WAITING_MAX
    assert bench.ledger.receive(items[WAITING_MAX:]) == 0 and bench.ledger.cursor == WAITING_MAX  # no room: later
    assert bench.path.stat().st_size < 100_000
    assert bench.run() == WAITING_MAX
    assert bench.ledger.receive(items[WAITING_MAX:]) == ITEMS_MAX


@pytest.mark.parametrize("years", [-30, 30])
def test_expiry_is_by_the_time_since_boot_whatever_the_wall_clock_says(bench: Bench, years: int) -> None:
    bench.ledger.receive([command(1, expires_in_s=60), command(2, expires_in_s=600)])
    bench.clock.jump_wall(years * 365 * 86400.0)
    bench.clock.advance(61)
    bench.run()
    assert bench.states == [(1, "expired"), (2, "done")] and bench.done == ["ping"]


def test_a_command_keeps_the_time_that_it_has_left_over_a_restart(bench: Bench) -> None:
    bench.ledger.receive([command(1, expires_in_s=60), command(2, expires_in_s=100)])
    bench.clock.advance(50)
    bench.ledger.receive([command(3, expires_in_s=25)])  # noted now: 10 s, 50 s and 25 s are left
    bench.restart(boot="boot-2")
    bench.ledger.receive([command(4, expires_in_s=5)])
    bench.clock.advance(8)
    bench.restart()  # the process alone: the time since boot goes on
    bench.clock.advance(8)
    bench.run()
    assert bench.states == [(1, "expired"), (2, "done"), (3, "done"), (4, "expired")]


def test_a_command_of_no_time_left_is_expired_and_a_month_is_the_most(bench: Bench) -> None:
    bench.ledger.receive([command(1, expires_in_s=0), command(2, expires_in_s=EXPIRES_S_MAX)])
    bench.run()
    assert bench.states == [(1, "expired"), (2, "done")]


@pytest.mark.parametrize(
    ("error", "detail"), [(ModelError("there is none"), "there is none"), (KeyError("\ud800"), "KeyError")]
)
def test_a_command_that_fails_says_why_and_the_next_one_runs(bench: Bench, error: Exception, detail: str) -> None:
    def fail(args: object) -> None:
        raise error

    bench.ledger.receive([command(1, "flush"), command(2), command(3, "sync_now")])
    bench.ledger.run({"flush": fail, "ping": bench.handler("ping")}, bench.reports.append)
    assert bench.states == [(1, "failed"), (2, "done"), (3, "refused")]
    assert detail in bench.reports[0]["detail"] and "cannot sync_now" in bench.reports[2]["detail"]
    json.dumps(bench.reports, ensure_ascii=False).encode()


def test_a_result_is_made_to_fit(bench: Bench) -> None:
    bench.ledger.receive([command(1), command(2), command(3)])
    results = iter(["x" * (RESULT_BYTES_MAX + 1), {"nan": float("nan"), "tuple": (1, 2)}, object()])
    bench.ledger.run({"ping": lambda args: next(results)}, bench.reports.append)  # type: ignore[arg-type, return-value]
    assert bench.states == [(1, "done"), (2, "done"), (3, "failed")]
    assert bench.reports[0]["result"] is None and "at most" in bench.reports[0]["detail"]
    assert bench.reports[1]["result"] == {"nan": None, "tuple": [1, 2]}


def test_a_result_that_is_too_large_for_the_journal_blocks_nothing(bench: Bench) -> None:
    def report(payload: dict[str, Any]) -> None:
        if payload["result"]:
            raise WireError("a command_result record has 9000 bytes, at most 4000 are taken")
        bench.reports.append(payload)

    bench.ledger.receive([command(1), command(2, "flush")])
    bench.ledger.run({"ping": bench.handler("ping"), "flush": lambda args: None}, report)
    assert bench.states == [(1, "done"), (2, "done")] and "at most 4000" in bench.reports[0]["detail"]


def test_an_answer_that_the_journal_refuses_stays_and_runs_nothing_twice(bench: Bench) -> None:
    def refuse(payload: object) -> None:
        raise JournalFullError("full")

    bench.ledger.receive([command(1), command(2)])
    for _ in range(3):
        with pytest.raises(JournalFullError):
            bench.ledger.run({"ping": bench.handler("ping")}, refuse)
    bench.restart()
    assert bench.done == ["ping"]
    assert bench.run() == 2 and bench.states == [(1, "done"), (2, "done")] and bench.done == ["ping", "ping"]


def test_a_disk_that_takes_nothing_runs_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.ledger.receive([command(1)])
    away = tmp_path / "away"
    bench.path.rename(away)
    bench.path.mkdir()
    (bench.path / "in the way").touch()
    with pytest.raises(DeviceError):
        bench.run()
    with pytest.raises(DeviceError):
        bench.ledger.receive([command(2)])
    assert bench.done == [] and bench.reports == [] and bench.ledger.cursor == 1
    shutil.rmtree(bench.path)
    away.rename(bench.path)
    bench.ledger.receive([command(2)])
    assert bench.run() == 2 and bench.done == ["ping", "ping"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner": "d1"}', b"\xff" * 100, b"x" * (5 << 20)])
def test_a_damaged_file_runs_nothing_and_the_device_goes_on(bench: Bench, content: bytes) -> None:
    bench.ledger.receive([command(1)])
    bench.path.write_bytes(content)
    bench.restart()
    assert bench.run() == 0 and bench.done == [] and bench.ledger.cursor == 0
    assert bench.ledger.receive([command(2)]) == 1 and bench.run() == 1


def test_what_was_meant_for_another_device_is_forgotten(bench: Bench) -> None:
    bench.ledger.receive([command(9)])
    bench.owner = "d2"
    assert bench.restart().cursor == 0 and bench.run() == 0


# Cut at every step -----------------------------------------------------------------------------------------


def life(bench: Bench, items: list[dict[str, Any]]) -> None:
    """A server that repeats what the cursor does not acknowledge, and a device that runs it."""
    for _ in range(3):
        sent = [item for item in items if item["id"] > bench.ledger.cursor]
        bench.ledger.receive(sent[:2])
        bench.run()


def test_cut_at_every_step_each_command_runs_at_most_once_and_is_answered(tmp_path: Path) -> None:
    items = [command(1, "flush"), command(2, "self_destruct"), command(3, "ping"), command(4, "rollback", model="m")]
    steps = 0
    for kill_at in range(1, 1000):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        bench = Bench(folder)
        with Cutter(folder, kill_at=kill_at) as cutter, contextlib.suppress(Killed):
            life(bench, items)
        bench.restart()
        life(bench, items)
        assert all(bench.done.count(name) <= 1 for name in ("flush", "ping", "rollback"))
        first: dict[int, str] = {}
        for number, state in bench.states:
            first.setdefault(number, state)
        assert sorted(first) == [1, 2, 3, 4] and first[2] == "refused"
        for number, name in ((1, "flush"), (3, "ping"), (4, "rollback")):
            assert first[number] in ("done", "interrupted")
            assert first[number] == "interrupted" or name in bench.done
        again = [state for number, state in bench.states if bench.states.count((number, state)) > 1]
        assert len(again) <= 2  # one report may have been sent twice
        if not cutter.dead:
            break
        steps = kill_at
    print(f"commands: cut at each of {steps} steps")
    assert steps > 50 and len(set(first.values()) - {"done", "refused"}) == 0


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)
LIKELY = st.fixed_dictionaries(
    {"id": st.integers(-2, 300) | WILD},
    optional={
        "type": st.just("command") | WILD,
        "name": st.sampled_from([*COMMANDS, "nothing"]) | WILD,
        "args": WILD | st.fixed_dictionaries({"model": st.text(max_size=70)}),
        "expires_in_s": st.floats(0, 100) | WILD,
    },
)


@settings(
    max_examples=2000 if os.environ.get("TINYMLOPS_TORTURE") else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batches=st.lists(st.lists(LIKELY | WILD, max_size=6), max_size=4))
def test_anything_at_all_may_come_down(tmp_path: Path, batches: list[list[Any]]) -> None:
    (tmp_path / "commands.json").unlink(missing_ok=True)
    bench = Bench(tmp_path)
    for batch in batches:
        before = bench.ledger.cursor
        bench.ledger.receive(batch)
        assert bench.ledger.cursor >= before
        bench.restart()
        bench.run()
    assert bench.ledger.waiting == 0
    assert len({number for number, _ in bench.states}) == len(bench.states)
    json.dumps(bench.reports, allow_nan=False, ensure_ascii=False).encode()


def test_every_command_says_what_it_takes() -> None:
    assert check_args("capture", {"windows": 3}) == {"model": "", "windows": 3}
    with pytest.raises(WireError, match="known: ping, rotate_key, sync_now"):
        check_args("no_such", {})
