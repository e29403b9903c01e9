"""A configuration from the server is valid as a whole or refused, and goes when the device cannot run with it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from cuts import Cutter, Killed
from tinylcm.capture import CapturePolicy
from tinylcm.config import DeviceConfig, ModelConfig, ServerConfig, parse_config
from tinylcm.errors import ConfigError, DeviceError
from tinylcm.remote_config import (
    REPORTS_MAX,
    SETTINGS_BYTES_MAX,
    STARTS_MAX,
    TRIAL_S,
    RemoteConfig,
    check_settings,
    merge,
)

FAST = {"device": {"metrics_interval_s": 5}, "server": {"sync_interval_s": 7.5}}
SLOW = {"device": {"metrics_interval_s": 500}}


class Bench:
    """A device that is configured from afar."""

    def __init__(self, folder: Path) -> None:
        self.base = DeviceConfig(folder, server=ServerConfig(sync_interval_s=60))
        self.clock = ManualClock()
        self.applied: list[DeviceConfig] = []
        self.reports: list[dict[str, Any]] = []
        self.failing: set[float] = set()
        self.remote = self.restart()

    def restart(self, *, well: bool = False) -> RemoteConfig:
        if well:
            self.remote.close()
        self.remote = RemoteConfig(self.base, self.clock)
        self.remote.boot()
        return self.remote

    def apply(self, config: DeviceConfig) -> None:
        self.applied.append(config)
        if config.metrics_interval_s in self.failing:
            raise RuntimeError(f"cannot run with {config.metrics_interval_s:g}")

    def offer(self, version: int, settings: object) -> str:
        return self.remote.offer(version, settings, self.apply)

    def take(self) -> list[tuple[int, str]]:
        self.remote.take_reports(self.reports.append)
        return [(report["version"], report["state"]) for report in self.reports]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_settings_are_applied_at_once_and_kept(bench: Bench) -> None:
    assert bench.offer(1, FAST) == "applied"
    assert bench.applied[0].metrics_interval_s == 5 and bench.applied[0].server.sync_interval_s == 7.5
    assert bench.remote.is_on_trial and bench.take() == [(1, "applied")]
    assert bench.offer(1, FAST) == "unchanged" and len(bench.applied) == 1
    bench.remote.tick()
    assert bench.remote.is_on_trial
    bench.clock.advance(TRIAL_S)
    bench.remote.tick()
    assert not bench.remote.is_on_trial
    assert bench.restart().merged().metrics_interval_s == 5 and bench.remote.version == 1
    assert bench.take() == [(1, "applied")]


def test_the_devices_own_file_shows_through_and_its_changes_count(bench: Bench) -> None:
    bench.offer(1, SLOW)
    assert bench.remote.merged().server.sync_interval_s == 60
    bench.base = replace(bench.base, server=ServerConfig(sync_interval_s=33), metrics_interval_s=1.0)
    assert bench.restart(well=True).merged().server.sync_interval_s == 33
    assert bench.remote.merged().metrics_interval_s == 500
    bench.offer(2, {})
    assert bench.remote.merged() == bench.base


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ([], "expected a table"),
        (None, "expected a table"),
        ({"device": 3}, "expected a table"),
        ({"device": {"data": "/etc"}}, "settings.device.data: is not known"),
        ({"server": {"insecure": True}}, "settings.server.insecure"),
        ({"server": {"ca_file": "/x"}}, "settings.server.ca_file"),
        ({"journal": {"journal_bytes_max": 1}}, "settings.journal.journal_bytes_max"),
        ({"models": {"m": {"package": "/etc/passwd"}}}, "settings.models.m.package"),
        ({"models": {"../m": {}}}, "is no model name"),
        ({"models": [1]}, "expected a table"),
        ({"trust": {}}, "settings.trust"),
        ({"device": {"metrics_interval_s": "often"}}, "metrics_interval_s: expected a finite number"),
        ({"device": {"metrics_interval_s": -1}}, "metrics_interval_s"),
        ({"server": {"sync_interval_s": 1e30}}, "sync_interval_s"),
        ({"trial": {"windows": 0}}, "trial.windows"),
        ({"trial": {"windows": True}}, "trial.windows"),
        ({"capture": {"reservoir": 1 << 39}}, "reservoir"),
        ({"capture": {"privacy": "open"}}, "privacy"),
        ({"device": {"metrics_interval_s": float("nan")}}, "cannot be stored"),
        ({"device": {"metrics_interval_s": "\ud800"}}, "cannot be stored"),
        ({"models": {f"m{n}": {"latency_us": 1.0} for n in range(SETTINGS_BYTES_MAX // 20)}}, "at most"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(bench: Bench, settings: object, problem: str) -> None:
    bench.offer(1, SLOW)
    assert bench.offer(2, settings) == "refused" and len(bench.applied) == 1
    assert bench.offer(2, settings) == "unchanged"
    assert bench.take() == [(1, "applied"), (2, "refused")]
    assert problem in bench.reports[1]["reason"]
    assert bench.restart().merged().metrics_interval_s == 500
    assert bench.offer(3, FAST) == "applied"


def test_a_whole_that_is_wrong_is_refused_although_each_part_is_right(bench: Bench) -> None:
    bench.base = replace(bench.base, server=ServerConfig(sync_interval_s=0.001))  # no device.toml can say this
    bench.restart()
    assert bench.offer(1, SLOW) == "refused" and bench.remote.merged() == bench.base


@pytest.mark.parametrize(("own", "wanted", "taken"), [
    ("full", "hashed", True), ("hashed", "hashed", True), ("hashed", "full", False), ("none", "features", False),
])  # fmt: skip
def test_privacy_is_only_ever_tightened(bench: Bench, own: str, wanted: str, taken: bool) -> None:
    bench.base = replace(bench.base, capture=CapturePolicy(privacy=own))
    bench.restart()
    assert bench.offer(1, {"capture": {"privacy": wanted, "every_nth": 5}}) == ("applied" if taken else "refused")
    assert bench.remote.merged().capture.privacy == (wanted if taken else own)


def test_a_document_stands_for_a_configuration_as_it_is(tmp_path: Path) -> None:
    base = parse_config(
        {
            "device": {"name": "w", "data": "d", "ring_samples": 9, "threads": 2},
            "server": {"ca_file": "/ca.pem", "format": "json"},
            "models": {"a": {"package": "a.tlm", "priority": 3}, "b": {}},
            "capture": {"every_nth": 3, "around_alarm": True},
        },
        tmp_path,
    )
    settings = {"models": {"a": {"latency_us": 5}, "c": {"memory_bytes": 7}}}
    wanted = {**base.models, "a": replace(base.models["a"], latency_us=5.0), "c": ModelConfig(memory_bytes=7)}
    assert merge(base, settings) == replace(base, models=wanted)
    assert merge(base, {}) is base
    with pytest.raises(ConfigError):
        check_settings({"device": {"name": "x"}})


def test_an_exception_while_applying_brings_the_earlier_one_back(bench: Bench) -> None:
    bench.offer(1, SLOW)
    bench.clock.advance(TRIAL_S)
    bench.remote.tick()
    bench.failing = {5.0}
    assert bench.offer(2, FAST) == "rolled_back"
    assert [config.metrics_interval_s for config in bench.applied] == [500, 5, 500]
    assert bench.take() == [(1, "applied"), (2, "rolled_back")] and "cannot run with 5" in bench.reports[1]["reason"]
    assert bench.offer(2, FAST) == "unchanged"
    assert bench.restart().merged().metrics_interval_s == 500 and not bench.remote.is_on_trial


def test_a_failure_on_top_of_a_trial_goes_back_to_what_was_good(bench: Bench) -> None:
    bench.offer(1, SLOW)  # still on trial
    bench.failing = {5.0}
    assert bench.offer(2, FAST) == "rolled_back"
    assert bench.applied[-1] == bench.base == bench.remote.merged() and bench.remote.version == 0


def test_a_trial_that_keeps_crashing_the_device_is_given_up(bench: Bench) -> None:
    bench.offer(1, FAST)
    for _ in range(STARTS_MAX + 2):  # starts that end well do not count
        assert bench.restart(well=True).version == 1
    for _ in range(STARTS_MAX - 1):
        assert bench.restart().version == 1
    assert bench.restart().version == 0 and bench.remote.merged() == bench.base
    assert bench.take()[-1] == (1, "rolled_back") and "restarted too often" in bench.reports[-1]["reason"]
    assert bench.offer(1, FAST) == "unchanged"
    assert bench.offer(2, FAST) == "applied"


def test_settings_that_no_longer_fit_device_toml_give_way_at_the_start(bench: Bench) -> None:
    bench.offer(1, {"capture": {"privacy": "features"}})
    bench.remote.confirm()
    bench.base = replace(bench.base, capture=CapturePolicy(privacy="none"))
    assert bench.restart().merged() == bench.base
    assert bench.take() == [(1, "applied"), (1, "rolled_back")] and "tighten" in bench.reports[1]["reason"]


def test_device_toml_is_read_again_under_what_the_server_set(bench: Bench) -> None:
    bench.offer(1, {"capture": {"privacy": "features"}})
    again = bench.remote.rebase(replace(bench.base, name="new", metrics_interval_s=9.0))
    assert (again.name, again.metrics_interval_s, again.capture.privacy) == ("new", 9.0, "features")
    with pytest.raises(ConfigError, match="tighten"):
        bench.remote.rebase(replace(bench.base, capture=CapturePolicy(privacy="none")))
    assert bench.remote.merged() == again


def test_a_server_that_was_restored_counts_anew(bench: Bench) -> None:
    bench.offer(8, FAST)
    assert bench.offer(3, SLOW) == "applied" and bench.offer(3, FAST) == "applied"
    assert bench.remote.version == 3 and bench.remote.merged().metrics_interval_s == 5


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"version": 1}', b"\xff", b"x" * (1 << 20)])
def test_a_damaged_file_leaves_the_devices_own_configuration(bench: Bench, content: bytes) -> None:
    bench.offer(1, FAST)
    (bench.base.data / "remote.json").write_bytes(content)
    assert bench.restart().merged() == bench.base
    assert bench.offer(1, FAST) == "applied"


def test_a_reader_writes_nothing(bench: Bench) -> None:
    bench.offer(1, FAST)
    before = (bench.base.data / "remote.json").read_bytes()
    for _ in range(STARTS_MAX + 1):
        assert RemoteConfig(bench.base, bench.clock).merged().metrics_interval_s == 5
    assert (bench.base.data / "remote.json").read_bytes() == before


def test_reports_wait_for_the_journal_and_are_bounded(bench: Bench) -> None:
    def refuse(report: object) -> None:
        raise DeviceError("full")

    for version in range(1, REPORTS_MAX + 10):
        bench.offer(version, SLOW)
    with pytest.raises(DeviceError):
        bench.remote.take_reports(refuse)
    bench.restart(well=True)
    assert bench.take()[-1] == (REPORTS_MAX + 9, "applied") and len(bench.reports) == REPORTS_MAX


def test_a_disk_that_takes_nothing_changes_nothing(bench: Bench) -> None:
    path = bench.base.data / "remote.json"
    path.mkdir()
    (path / "in the way").touch()
    with pytest.raises(DeviceError):
        bench.offer(1, FAST)
    assert bench.applied == [] and bench.remote.merged() == bench.base and bench.remote.version == 0


def test_cut_at_every_step_one_of_the_two_is_in_force_and_the_last_one_wins(tmp_path: Path) -> None:
    steps = 0
    for kill_at in range(1, 1000):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        bench = Bench(folder)
        bench.offer(1, SLOW)
        bench.remote.confirm()
        bench.failing = {77.0}
        with Cutter(folder, kill_at=kill_at) as cutter, contextlib.suppress(Killed):
            bench.offer(2, {"device": {"metrics_interval_s": 77}})
            bench.take()
            bench.offer(3, FAST)
            bench.take()
        assert bench.restart().merged().metrics_interval_s in (5, 77, 500)
        bench.offer(3, FAST)
        bench.clock.advance(TRIAL_S)
        bench.remote.tick()
        assert bench.restart().merged().metrics_interval_s == 5 and not bench.remote.is_on_trial
        assert (3, "applied") in bench.take()
        if not cutter.dead:
            break
        steps = kill_at
    print(f"configuration: cut at each of {steps} steps")
    assert steps > 30


def test_what_is_stored_says_its_state(bench: Bench) -> None:
    bench.offer(1, FAST)
    stored = json.loads((bench.base.data / "remote.json").read_text())
    assert (stored["version"], stored["state"], stored["previous"]) == (1, "trial", {"version": 0, "settings": {}})
    bench.remote.confirm()
    assert json.loads((bench.base.data / "remote.json").read_text())["state"] == "good"
