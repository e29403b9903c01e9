"""A device and a server in process: commands and configuration, with answers that are lost and peers that lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from cuts import Cutter, Killed
from kit import make_web
from models import make_package, make_signer, write_keys
from scripted import Reply, Request, scripted_server
from tinylcm import Device, ServerError, TinyLCMError
from tinylcm.config import DeviceConfig, ServerConfig
from tinylcm.identity import Identity, load_identity, save_identity
from tinylcm.wire import Desired, SyncResponse, encode
from tinysphere import commands, settings

SECRET = "33" * 32
FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))


class World:
    """A real server behind a line that can lose its answers, and a device that has one model."""

    def __init__(self, folder: Path) -> None:
        (folder / "server").mkdir()
        self.web = make_web(folder / "server")
        self.lost = 0
        self.clock = ManualClock()
        self.config = DeviceConfig(folder / "device", server=ServerConfig(timeout_s=5))
        self.config.data.mkdir()
        write_keys(self.config.data / "trust", make_signer())
        self.id = self.web.kit.enrol("watch", SECRET)

    def answer(self, request: Request) -> Reply:
        answer = self.web.client.request(request.method, request.path, content=request.body, headers=request.headers)
        headers = {"Content-Type": answer.headers["content-type"]}
        if self.lost:
            self.lost -= 1
            return Reply(answer.status_code, answer.content, headers, cut_after=0)
        return Reply(answer.status_code, answer.content, headers)

    def open(self) -> Device:
        return Device.open(self.config, clock=self.clock, background=False)

    def give(self, name: str, expires_in_s: float = 600.0, selector: str = "all", **args: object) -> int:
        asked = commands.CommandRequest(selector, name, args, expires_in_s)
        now_s = self.web.kit.clock.wall_s()
        return self.web.kit.db.write(lambda connection: commands.create_in(connection, asked, "me", now_s)).id

    def state(self, number: int) -> tuple[str, str, Any]:
        (found,) = commands.get_command(self.web.kit.db, number, self.web.kit.clock.wall_s()).devices
        return found.state, found.detail, found.result

    def set(self, wanted: dict[str, object]) -> None:
        settings.put(self.web.kit.db, "all", settings.SettingsRequest(wanted), "*", "me", 1.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with made.web.client, scripted_server(made.answer) as (url, _):
        identity = Identity(SECRET, url, "sha256:" + "0" * 64, made.id)
        save_identity(made.config.data / "identity.json", identity)
        yield made


def test_every_command_is_answered_within_the_sync_that_brings_it(world: World) -> None:
    with world.open() as device:
        device.agent.install(make_package())
        device.agent.install(make_package(version="2.0.0", bias=1.0))
        device.model("gesture").infer([1, 2, 3])
        given = {
            name: world.give(name, **args)
            for name, args in {
                "ping": {}, "flush": {}, "sync_now": {}, "collect_status": {}, "reset_monitors": {"model": "gesture"},
                "rollback": {"model": "gesture"}, "log_level": {"level": "warning", "for_s": 5},
            }.items()
        }  # fmt: skip
        failing = world.give("rollback", model="nothing_like_it")
        device.sync()
        assert {name: world.state(number)[0] for name, number in given.items()} == dict.fromkeys(given, "done")
        assert world.state(given["rollback"])[2] == {"version": "1.0.0"}
        assert world.state(given["collect_status"])[2]["models"]["gesture"]["version"] == "2.0.0"
        state, detail, _ = world.state(failing)
        assert state == "failed" and "cannot rollback" in detail
        assert device.model("gesture").infer([1, 2, 3]).version == "1.0.0"


def test_lost_answers_run_a_command_once(world: World) -> None:
    pings: list[object] = []
    with world.open() as device:
        device.agent.downlink.handlers["ping"] = lambda args: pings.append(args)  # type: ignore[assignment, return-value]
        number = world.give("ping")
        world.lost = 3
        for _ in range(3):
            with pytest.raises(ServerError):
                device.sync()
        device.sync()
        device.sync()
        assert len(pings) == 1 and world.state(number)[0] == "done"


def test_a_device_that_was_killed_inside_a_command_says_so(world: World) -> None:
    class KilledError(BaseException):
        pass

    def die(args: object) -> None:
        raise KilledError

    device = world.open()
    device.agent.downlink.handlers["ping"] = die  # type: ignore[assignment]
    number, after = world.give("ping"), world.give("flush")
    with pytest.raises(KilledError):
        device.sync()
    device.journal.close()  # the process is gone; nothing else of it is closed
    with world.open() as again:
        again.sync()
    assert world.state(number)[0] == "interrupted" and world.state(after)[0] == "done"


@pytest.mark.parametrize("years", [-15, 15])
def test_clocks_that_jump_expire_nothing_and_keep_nothing_alive(world: World, years: int) -> None:
    with world.open() as device:
        device.agent.downlink.receive([])
        in_time, late = world.give("ping", 600), world.give("ping", 60)
        run, device.agent.downlink.tick = device.agent.downlink.tick, lambda: None  # type: ignore[method-assign]
        device.sync()
        world.clock.jump_wall(years * 365 * 86400.0)
        world.clock.advance(100)
        device.agent.downlink.tick = run  # type: ignore[method-assign]
        device.sync()
        device.sync()
    assert world.state(in_time)[0] == "done" and world.state(late)[0] == "expired"


def test_a_configuration_is_applied_at_once_kept_and_reported(world: World) -> None:
    with world.open() as device:
        device.sync()
        world.set({"server": {"sync_interval_s": 7}, "trial": {"windows": 3}, "journal": {"commit_interval_s": 9}})
        device.sync()
        assert device.agent.sync.interval_s == 7 and device.config.trial.windows == 3
        assert device.journal.stats().wear["commit_interval_s"] == 9
        (said,) = settings.get(world.web.kit.db, "all").devices
        assert (said.version, said.state) == (1, "applied")
    with world.open() as again:
        assert again.config.server.sync_interval_s == 7 and again.agent.sync.interval_s == 7
    own = Device.open(replace(world.config, data=world.config.data.parent / "other"), background=False)
    assert own.config.server.sync_interval_s == 60
    own.close()


def test_a_configuration_that_the_agent_cannot_run_with_is_rolled_back(world: World) -> None:
    with world.open() as device:
        taken = device.agent.reconfigured
        assert taken is not None

        def fail(config: DeviceConfig) -> None:
            if config.metrics_interval_s == 5:
                raise OSError("no such thing")
            taken(config)

        device.agent.reconfigured = fail
        world.set({"device": {"metrics_interval_s": 5}})
        device.sync()
        assert device.config.metrics_interval_s == 60
        (said,) = settings.get(world.web.kit.db, "all").devices
        assert said.state == "rolled_back" and "no such thing" in said.reason
        device.sync()
        assert len(settings.get(world.web.kit.db, "all").devices) == 1


def test_a_configuration_under_which_the_loop_breaks_is_rolled_back(world: World) -> None:
    with world.open() as device:
        device.sync()

        def breaks() -> None:
            if device.config.metrics_interval_s == 5:
                raise RuntimeError("a bug that these settings wake")

        device.agent.also = breaks
        world.set({"device": {"metrics_interval_s": 5}})
        device.sync()
        assert device.config.metrics_interval_s == 5
        stop = threading.Event()
        loop = threading.Thread(target=device.agent.run, args=(stop,))
        loop.start()
        deadline = time.monotonic() + 20
        while device.config.metrics_interval_s == 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        loop.join(20)
        assert device.config.metrics_interval_s == 60
        device.sync()
        (said,) = settings.get(world.web.kit.db, "all").devices
        assert said.state == "rolled_back" and "a bug that these settings wake" in said.reason


def one_cut(world: World, url: str, kill_at: int) -> tuple[bool, str]:
    """A new device that is killed once; whether it was, and how its first command ended."""
    name = f"cut-{kill_at}"
    secret = hashlib.sha256(name.encode()).hexdigest()
    config = replace(world.config, data=world.config.data.parent / name)
    config.data.mkdir()
    device_id = world.web.kit.enrol(name, secret)
    save_identity(config.data / "identity.json", Identity(secret, url, "sha256:" + "0" * 64, device_id))
    ping, flush = world.give("ping", selector=f"name={name}"), world.give("flush", selector=f"name={name}")
    pings: list[object] = []
    device: Device | None = None
    with Cutter(config.data, skip=("journal",), kill_at=kill_at) as cutter, contextlib.suppress(Killed):
        device = Device.open(config, clock=world.clock, background=False)
        device.agent.downlink.handlers["ping"] = lambda args: pings.append(args)  # type: ignore[assignment, return-value]
        device.sync()
        device.close()
    if device is not None:
        device.journal.close()  # the process is gone; nothing else of it is closed
    with Device.open(config, clock=world.clock, background=False) as again:
        again.agent.downlink.handlers["ping"] = lambda args: pings.append(args)  # type: ignore[assignment, return-value]
        again.sync()
        again.sync()
        assert again.config.server.sync_interval_s == 7 == again.agent.sync.interval_s
    state = world.state(ping)[0]
    assert len(pings) <= 1 and (state == "interrupted" or (state, len(pings)) == ("done", 1))
    assert world.state(flush)[0] in ("done", "interrupted")
    said = {found.device_id: found.state for found in settings.get(world.web.kit.db, "all").devices}
    assert said[device_id] == "applied"
    return cutter.dead, state


def test_a_device_that_is_killed_at_any_step_answers_each_command_once(world: World) -> None:
    world.set({"server": {"sync_interval_s": 7}})
    url = load_identity(world.config.data / "identity.json").url  # type: ignore[union-attr]
    found: dict[str, int] = {}
    for kill_at in range(1, 1000, 1 if FULL else 5):
        is_dead, state = one_cut(world, url, kill_at)
        found[state] = found.get(state, 0) + 1
        if not is_dead:
            break
    print(f"a device is killed at {'each' if FULL else 'every fifth'} of {kill_at} steps of a sync: {found}")
    assert kill_at > 30 and found["done"] > found.get("interrupted", 0)


@pytest.mark.parametrize(
    ("downlink", "config", "error"),
    [
        ([{"id": "x"}, None, 5, {"id": 3, "type": "command", "name": 1, "args": 7}], {"version": "x"}, False),
        ([{"id": n, "type": "command"} for n in range(1, 9001)], {"version": 1, "settings": [[]]}, False),
        ([{"id": 1, "type": "command", "name": "x" * 300_000}], {}, True),
        ([None] * 1_000_000, {}, True),
        ([0] * 1_000_000, {}, True),
        ({"id": 1}, {}, True),
        ([], {"version": 1, "settings": {"a": "x" * 300_000}}, True),
    ],
)
def test_a_server_that_lies_loses_no_record_and_stops_nothing(
    tmp_path: Path, downlink: Any, config: Any, error: bool
) -> None:
    answer = SyncResponse({"events": None, "details": None}, "instance", 1.0, 0.0, Desired(2, config=config), ())
    body = json.dumps({**json.loads(encode(answer)), "downlink": downlink}).encode()
    with scripted_server(lambda request: Reply(body=body, headers={"Content-Type": "application/json"})) as (url, _):
        save_identity(tmp_path / "identity.json", Identity("s" * 64, url, "sha256:" + "0" * 64, "d" + "a" * 12))
        with Device.open(DeviceConfig(tmp_path), clock=ManualClock(), background=False) as device:
            device.label("p-1", "walking")
            device.journal.flush()
            for _ in range(2):
                if error:
                    with pytest.raises(TinyLCMError):
                        device.agent.sync_now()
                else:
                    device.agent.sync_now()
            device.agent.tick()
            assert device.config.metrics_interval_s == 60
            records = device.journal.read("events", 10_000, 16 << 20)
            assert records[0].payload == {"prediction": "p-1", "label": "walking"}
            assert {record.payload.get("state", "refused") for record in records} <= {"refused"}


def test_windows_are_kept_when_a_command_asks_for_them(world: World) -> None:
    with world.open() as device:
        device.agent.install(make_package())
        model = device.model("gesture")
        other, number = world.give("capture", model="other", windows=3), world.give("capture", windows=2)
        device.sync()
        assert world.state(other)[0] == world.state(number)[0] == "done"
        for _ in range(5):
            model.infer([1, 2, 3])
        device.flush_capture(force=True)
        device.journal.flush()
        samples = [item for item in device.journal.read("details", 100, 1 << 20) if item.type == "sample"]
        assert [sample.payload["reasons"] for sample in samples] == [["command"], ["command"]]


def test_what_is_captured_follows_the_server_at_once(world: World) -> None:
    with world.open() as device:
        device.agent.install(make_package())
        model = device.model("gesture")
        for version, wanted in enumerate(({"every_nth": 1}, {"around_alarm": True, "pre_roll": 50}, {})):
            world.set({"capture": wanted})
            device.sync()
            for _ in range(3):
                model.infer([1, 2, 3])
            assert device.status()["capture"]["kept"] == {"every_nth": 3}, version  # type: ignore[index]
        world.config = replace(world.config, capture=replace(world.config.capture, privacy="none"))
    with world.open() as again:
        number = world.give("capture", windows=2)
        again.sync()
        assert world.state(number)[:2] == ("failed", "this device keeps no windows: its capture.privacy is none")
