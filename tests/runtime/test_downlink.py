"""What comes down is answered through a real journal, also over restarts."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import ManualClock
from tinylcm import downlink
from tinylcm.config import DeviceConfig
from tinylcm.downlink import Downlink
from tinylcm.errors import DeviceError
from tinylcm.journal import Journal, JournalLimits
from tinylcm.remote_config import RemoteConfig

FAST = {"version": 4, "settings": {"device": {"metrics_interval_s": 5}}}


def command(number: int, name: str, **args: object) -> dict[str, object]:
    return {"id": number, "type": "command", "name": name, "args": args, "expires_in_s": 60.0}


class Bench:
    """A device without models: a journal, and what comes down."""

    def __init__(self, folder: Path) -> None:
        self.config, self.clock = DeviceConfig(folder), ManualClock()
        self.applied: list[DeviceConfig] = []
        self.open()

    def open(self) -> None:
        self.journal = Journal.open(self.config.data / "journal", JournalLimits(), self.clock)
        remote = RemoteConfig(self.config, self.clock)
        self.downlink = Downlink(self.config, self.clock, self.journal, remote, "d1", self.applied.append)
        self.downlink.boot()

    def close(self) -> None:
        self.downlink.close()
        self.journal.close()

    def answers(self) -> list[tuple[str, object, object]]:
        """(type, id or version, state) of each record."""
        records = self.journal.read("events", 100, 1 << 20)
        return [
            (record.type, record.payload.get("command", record.payload.get("version")), record.payload["state"])
            for record in records
        ]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_commands_and_configuration_are_answered_by_durable_records(bench: Bench) -> None:
    bench.downlink.receive([command(3, "ping"), command(4, "capture", windows=1)])
    bench.downlink.configure(FAST)
    bench.downlink.configure(FAST)
    bench.downlink.tick()
    bench.downlink.tick()
    assert bench.answers() == [
        ("config_result", 4, "applied"), ("command_result", 3, "done"), ("command_result", 4, "refused"),
    ]  # fmt: skip
    assert bench.downlink.cursor == 4 and bench.downlink.answered == 3
    assert bench.applied[0].metrics_interval_s == 5
    result = bench.journal.read("events", 100, 1 << 20)[1].payload["result"]
    assert result == {"boot": "boot-1", "boot_ns": 1000 * 10**9, "wall_s": bench.clock.wall_s()}


@pytest.mark.parametrize("config", [{}, {"version": 1}, {"version": "1", "settings": {}}, {"settings": {}},
                                    {"version": -1, "settings": {}}, {"version": 2, "settings": [1]}])  # fmt: skip
def test_a_configuration_that_is_none_changes_nothing(bench: Bench, config: dict) -> None:
    bench.downlink.configure(config)
    bench.downlink.tick()
    assert bench.applied == [] and {state for _, _, state in bench.answers()} <= {"refused"}


def test_what_waits_goes_on_after_a_restart(bench: Bench) -> None:
    bench.downlink.receive([command(1, "ping")])
    bench.downlink.configure(FAST)
    bench.close()
    bench.open()
    bench.downlink.tick()
    assert bench.answers() == [("config_result", 4, "applied"), ("command_result", 1, "done")]


def test_a_journal_that_takes_nothing_keeps_the_answers_waiting(bench: Bench) -> None:
    bench.downlink.receive([command(1, "ping")])
    bench.journal.close()
    with pytest.raises(DeviceError, match="closed"):
        bench.downlink.tick()
    bench.open()
    bench.downlink.tick()
    assert bench.answers() == [("command_result", 1, "done")]


def test_a_disk_that_fails_for_long_gets_one_answer_not_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    here, real = threading.get_ident(), os.open

    def fail(path: str, flags: int, *arguments: int, **named: int) -> int:
        if threading.get_ident() != here and flags & os.O_CREAT:
            raise OSError(errno.EIO, "failing")
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(downlink, "REPORT_TIMEOUT_S", 0.05)
    bench.downlink.receive([command(1, "ping")])
    with monkeypatch.context() as failing:
        failing.setattr(os, "open", fail)
        for _ in range(3):
            with pytest.raises(DeviceError, match="has not taken"):
                bench.downlink.tick()
    bench.journal.flush()
    bench.downlink.tick()
    assert bench.answers() == [("command_result", 1, "done")]
