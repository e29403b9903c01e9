"""A board behind a device behind a server: its rows become predictions of the device, its own become the server's, and
packages for boards are deployed, confirmed, refused and rolled back on it as on any device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_data import wave_model
from fleet import Sphere, build_activity, device_config, enrol, make_keys, sphere
from tinylcm.config import BoardConfig, DeviceConfig
from tinylcm.device import Device
from tinylcm.keys import Signer
from tinylcm.manifest import InputSpec, Manifest, WindowSpec
from tinylcm.publish import build_from

from firmware_bridge.blob import BoardModel, write_model
from firmware_bridge.messages import I16, Sensor
from firmware_bridge.simboard import Mischief, SimulatedBoard, Source
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
SCALE = 0.01


def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come in time"
        time.sleep(0.05)


def recordings() -> np.ndarray:
    """The smart watch's test recordings, one after another, as its sensor counts them."""
    with np.load(EXAMPLES / "activity" / "data" / "basic_motions.npz", allow_pickle=False) as data:
        series = data["x_test"].transpose(0, 2, 1).reshape(-1, 6)
    return np.rint(series.astype(np.float64) / SCALE).astype(np.int16)


def watch(folder: Path, uid: str, **changes: Any) -> SimulatedBoard:
    """A board that plays the watch: in place of 10 rows a second it sends 200, as nobody wants to wait."""
    sensor = Sensor(0, "imu", I16, CHANNELS, 200_000, "m/s2", SCALE)
    given: dict[str, Any] = {"trial_s": 40, "metrics_s": 0.5, "rows_per_frame": 20, **changes}
    return SimulatedBoard(uid, Slots.in_folder(folder / uid, 16384), [Source(sensor, recordings())], **given)


def wrist_model(seed: int) -> BoardModel:
    return wave_model(seed, channels=6, rows=100, hop=10)


def package(signer: Signer, version: str, model: BoardModel, channels: tuple[str, ...] = CHANNELS) -> bytes:
    manifest = Manifest(
        name="wrist",
        version=version,
        format="board",
        input=InputSpec("window", (1, model.rows, model.channels), "int16", channels, scale=SCALE),
        output="scores",
        labels=("badminton", "running", "standing", "walking"),
        window=WindowSpec(model.rows, model.hop, 200.0),
    )
    return build_from(manifest, {"model.board": write_model(model)}, signer)


@dataclass
class World:
    """A server, a publisher, and a device's configuration."""

    server: Sphere
    signer: Signer
    keys: Path
    config: DeviceConfig
    device_id: str

    def upload(self, folder: Path, version: str, model: BoardModel, **changes: Any) -> None:
        path = folder / f"wrist-{version}.tlm"
        path.write_bytes(package(self.signer, version, model, **changes))
        self.server.client.upload(path, "wrist")

    def deploy(self, version: str, model: str = "wrist") -> int:
        return int(self.server.client.deploy(model, version)["id"])

    def states(self, deployment: int) -> tuple[str, dict[str, tuple[str, str]]]:
        """The device's state, and each board's with its reason."""
        found = self.server.client.deployment(deployment)["devices"]
        if not found:
            return "", {}
        (device,) = found
        return device["state"], {board["uid"]: (board["state"], board["reason"]) for board in device["boards"]}

    def boards(self) -> dict[str, Any]:
        return {board["uid"]: board for board in self.server.client.device(self.device_id)["boards"]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        server.trust(keys / "root.pub")
        config = device_config(tmp_path / "device", sync_interval_s=0.3)
        identity = enrol(config, server.join(keys / "root.pub"))
        yield World(server, Signer.load(keys / "release.key"), keys, config, identity.device_id)


@pytest.mark.long
def test_a_board_s_whole_life_behind_a_device(world: World, tmp_path: Path) -> None:
    server = world.server
    activity = build_activity(EXAMPLES / "activity", world.keys, tmp_path / "activity.tlm")
    server.client.upload(activity, "activity")
    world.upload(tmp_path, "1.0.0", wrist_model(0))
    world.upload(tmp_path, "2.0.0", wrist_model(1))
    simulated = watch(tmp_path, "wrist-7")
    with Simulator(simulated) as simulator:
        board = BoardConfig("wrist-7", (simulator.path,), name="left wrist", streams={"imu": "activity"})
        with Device.open(replace(world.config, boards=(board,))) as device:
            wait(lambda: world.boards().get("wrist-7", {}).get("state") == "online")
            world.deploy("1.0.0", "activity")
            first = world.deploy("1.0.0")
            wait(lambda: world.states(first) == ("confirmed", {"wrist-7": ("confirmed", "")}))

            # Its rows feed the model of the device, at their own time.
            model = device.model("activity")
            wait(lambda: model.metrics.rollup()["windows"] > 20)  # type: ignore[operator]
            rollup = model.metrics.rollup()
            assert rollup["errors"] == 0 and rollup["samples"]["gaps"] == 0  # type: ignore[index,call-overload]

            # Its own predictions are metrics on the server, beside the device's.
            wait(lambda: _windows(server, "wrist") > 10 and _windows(server, "activity") > 10)
            shown = world.boards()["wrist-7"]
            assert (shown["name"], shown["model"], shown["model_version"]) == ("left wrist", "wrist", "1.0.0")
            assert shown["info"]["infer"] > 0 and shown["info"]["lost_rows"] == 0

            # A second version replaces the first, and a person goes back, from the server.
            second = world.deploy("2.0.0")
            wait(lambda: world.states(second) == ("confirmed", {"wrist-7": ("confirmed", "")}))
            wait(lambda: world.boards()["wrist-7"]["model_version"] == "2.0.0")
            server.client.command("all", "rollback", {"model": "wrist"})
            wait(lambda: world.boards()["wrist-7"]["model_version"] == "1.0.0")
            assert world.states(second)[0] == "rolled_back"

            # A board that computes something else refuses the third, and keeps what it runs.
            with simulator.lock:
                simulated._mischief = frozenset({Mischief.SELF_TEST})
            world.upload(tmp_path, "3.0.0", wrist_model(2))
            third = world.deploy("3.0.0")
            wait(lambda: world.states(third)[0] == "rolled_back")
            state, reason = world.states(third)[1]["wrist-7"]
            assert state == "refused" and "SELFTEST" in reason
            with simulator.lock:
                simulated._mischief = frozenset()

            # A package for another board goes no further than the device.
            world.upload(tmp_path, "4.0.0", wrist_model(3), channels=("a", "b", "c", "d", "e", "f"))
            fourth = world.deploy("4.0.0")
            wait(lambda: world.states(fourth)[0] == "rolled_back")
            assert world.boards()["wrist-7"]["model_version"] == "1.0.0"
        assert simulated.slots.model(simulated.slots.running or 0) == write_model(wrist_model(0))


def _windows(server: Sphere, model: str) -> int:
    return sum(int(item["windows"]) for item in server.client.metrics(model=model))


@pytest.mark.long
def test_an_alarm_of_a_board_is_a_drift_event_that_names_it(world: World, tmp_path: Path) -> None:
    simulated = watch(tmp_path, "wrist-8")
    simulated._sources[0].drift_after_rows = 9_000
    with (
        Simulator(simulated) as simulator,
        Device.open(replace(world.config, boards=(BoardConfig("", (simulator.path,)),))),
    ):
        wait(lambda: world.server.client.events(), 90.0)
        event = world.server.client.events()[0]
    assert (event["board"], event["detector"], event["monitor"]) == ("wrist-8", "PageHinkley", "imu")
    assert event["signal"] in CHANNELS and event["statistic"] > event["threshold"]


def test_a_board_that_comes_later_gets_what_the_others_run(world: World, tmp_path: Path) -> None:
    world.upload(tmp_path, "1.0.0", wrist_model(0))
    late = tmp_path / "late"
    with Simulator(watch(tmp_path, "b-1")) as first:
        boards = BoardConfig("b-1", (first.path,)), BoardConfig("b-2", (str(late),))
        with Device.open(replace(world.config, boards=boards)):
            deployment = world.deploy("1.0.0")
            wait(lambda: world.states(deployment)[0] == "confirmed")
            assert world.boards()["b-2"]["state"] == "away"
            with Simulator(watch(tmp_path, "b-2"), link=late):
                wait(lambda: world.states(deployment)[1].get("b-2") == ("confirmed", ""))
                wait(lambda: world.boards()["b-2"]["model"] == "wrist")


def test_tinylcm_run_serves_boards_without_a_model_of_its_own(world: World, tmp_path: Path) -> None:
    world.upload(tmp_path, "1.0.0", wrist_model(0))
    world.deploy("1.0.0")
    with Simulator(watch(tmp_path, "b-1")) as simulator:
        toml = tmp_path / "device.toml"
        toml.write_text(
            f'[device]\ndata = "{world.config.data}"\n[server]\nsync_interval_s = 0.3\n[trial]\nwindows = 3\n'
            f'[[board]]\nport = "{simulator.path}"\nname = "left"\n'
        )
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tinylcm.cli", "run", "--config", str(toml), "--json"],
                stdout=out, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        try:
            wait(lambda: (tmp_path / "out").read_text().count('"board": "b-1"') > 5)
            assert world.boards()["b-1"]["model"] == "wrist"
        finally:
            os.kill(process.pid, signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors


def test_the_registry_refuses_a_blob_that_was_changed(world: World, tmp_path: Path) -> None:
    """Its own self-test says so, in the probe of the upload; no board ever sees it."""
    from tinylcm.errors import ModelError
    from tinysphere.client import ClientError

    model = wrist_model(0)
    vectors = tuple(replace(vector, score=(vector.score + 1) % 65536) for vector in model.vectors)
    with pytest.raises(ModelError, match="self-test vector 0"):
        package(world.signer, "9.0.0", replace(model, vectors=vectors))
    data = package(world.signer, "9.0.1", model)
    blob = write_model(model)
    mutated = data.replace(blob, blob[:-8] + bytes(8))
    path = tmp_path / "mutated.tlm"
    path.write_bytes(mutated)
    with pytest.raises(ClientError, match="damaged"):
        world.server.client.upload(path, "wrist")
