"""The same with real firmware: a Cortex-M3 in QEMU plays the smart watch behind a device behind a server."""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blob_oracle import Oracle
from fleet import Sphere, build_activity, device_config, enrol, make_keys, sphere
from qemu_board import QemuBoard, firmware
from tinylcm.config import BoardConfig
from tinylcm.device import Device
from tinylcm.errors import ModelError
from tinylcm.keys import Signer
from tinylcm.manifest import InputSpec, Manifest, WindowSpec
from tinylcm.package import build_package, parse_package
from tinylcm.publish import build_from

from firmware_bridge.blob import ONE, read_model, write_model
from firmware_bridge.convert import Conversion, convert
from firmware_bridge.errors import UpdateError
from firmware_bridge.link import Link, open_link
from firmware_bridge.messages import CONFIRMED, ENDLESS, HelloRequest, Result, StreamRequest
from firmware_bridge.protocol import Gap, Received, Rows
from firmware_bridge.transfer import Transfer

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SCALE = 0.01  # of the firmware's sensor
pytestmark = pytest.mark.long


def wait(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def elf(root: Path) -> Path:
    return firmware(root)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "board_activity" / "train_board.py"))


@pytest.fixture(scope="module", params=["forest", "network"])
def conversion(example: dict[str, Any], request: pytest.FixtureRequest) -> Conversion:
    """The example's forest, or a network trained on the same, converted for the firmware's sensor."""
    forest, windows = example["train"]()
    original = forest
    if request.param == "network":
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        _, classes = example["windows_of"]("train", example["JOINS"], example["SEED"])
        original = make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=3000, random_state=0))
        original.fit(example["features_of"](windows["calibration"]), classes)
    return convert(
        original,
        features=example["FEATURES"],
        channels=example["CHANNELS"],
        calibration=windows["calibration"],
        held_out=windows["held_out"],
        hop=10,
        scale=SCALE,
    )


def record(link: Link, results: int, timeout_s: float) -> tuple[dict[int, Any], list[Result]]:
    """Rows by their time on the board, and predictions, until there are so many."""
    rows: dict[int, Any] = {}
    found: list[Result] = []
    until_s = time.monotonic() + timeout_s
    while len(found) < results:
        assert time.monotonic() < until_s, f"{len(found)} of {results} predictions in {timeout_s:g} s"
        for event in link.poll(0.5):
            assert not isinstance(event, Gap), event
            if isinstance(event, Rows):
                counts = np.rint(event.values / SCALE).astype(int).tolist()
                rows.update(zip(event.times_us.tolist(), counts, strict=True))
            elif isinstance(event, Received) and isinstance(event.message, Result):
                found.append(event.message)
    return rows, found


def test_predictions_of_the_firmware_equal_the_oracle_s_on_400_windows(
    elf: Path, tmp_path: Path, conversion: Conversion
) -> None:
    with QemuBoard(elf, tmp_path, pty=True, speed=50, metrics_ms=0) as board, open_link(board.path) as link:
        transfer = link.update(Transfer(conversion.blob, session=link.session), timeout_s=60)
        assert transfer.sha256.hex() == link.ask(HelloRequest(link.session)).model.sha256  # type: ignore[union-attr]
        link.ask(StreamRequest(stream=0, on=True, credit=ENDLESS))
        rows, results = record(link, 440, 180)
    oracle, times = Oracle(conversion.blob), sorted(rows)
    number = int.from_bytes(transfer.sha256[:4], "little")
    compared, labels = 0, set()
    for result in results:
        end = times.index(result.time_us) if result.time_us in rows else -1
        if end < oracle.rows - 1:
            continue  # of a window that began before the stream did
        window = [rows[at] for at in times[end - oracle.rows + 1 : end + 1]]
        assert result.model == number
        assert (result.label, result.score) == oracle.predict(window)
        compared += 1
        labels.add(result.label)
    assert compared >= 400 and len(labels) >= 3


def test_a_model_whose_self_test_fails_is_refused_by_the_firmware_and_the_old_one_runs_on(
    elf: Path, tmp_path: Path, conversion: Conversion
) -> None:
    with QemuBoard(elf, tmp_path, pty=True) as board, open_link(board.path) as link:
        good = link.update(Transfer(conversion.blob, session=link.session), timeout_s=60)
        with pytest.raises(UpdateError, match="SELFTEST"):
            link.update(Transfer(_with_wrong_vectors(conversion), session=link.session), timeout_s=60)
        running = link.ask(HelloRequest(link.session)).model  # type: ignore[union-attr]
    assert (running.sha256, running.state) == (good.sha256.hex(), CONFIRMED)


def package(signer: Signer, version: str, blob: bytes, channels: tuple[str, ...]) -> bytes:
    model = read_model(blob)
    manifest = Manifest(
        name="wrist",
        version=version,
        format="board",
        input=InputSpec("window", (1, model.rows, model.channels), "int16", channels, scale=SCALE),
        output="scores",
        labels=("badminton", "running", "standing", "walking"),
        window=WindowSpec(model.rows, model.hop, 10.0),
    )
    return build_from(manifest, {"model.board": blob}, signer)


@pytest.mark.parametrize("conversion", ["forest"], indirect=True)
def test_the_firmware_s_whole_life_behind_a_device(
    elf: Path, tmp_path: Path, conversion: Conversion, example: dict[str, Any]
) -> None:
    channels = example["CHANNELS"]
    keys = make_keys(tmp_path / "keys")
    signer = Signer.load(keys / "release.key")
    options = {"speed": 20, "uid": "watch-7", "metrics_ms": 1000, "trial_s": 60, "drift_at": 12_000}
    with QemuBoard(elf, tmp_path, pty=True, **options) as board, sphere(tmp_path) as server:
        server.trust(keys / "root.pub")
        config = device_config(tmp_path / "device", sync_interval_s=0.3)
        config = replace(config, boards=(BoardConfig("watch-7", (board.path,), streams={"watch": "activity"}),))
        identity = enrol(config, server.join(keys / "root.pub"))
        server.client.upload(build_activity(EXAMPLES / "activity", keys, tmp_path / "activity.tlm"), "activity")
        for version, named in (("1.0.0", channels), ("2.0.0", channels), ("3.0.0", channels[::-1])):
            path = tmp_path / f"{version}.tlm"
            blob = conversion.blob if version != "2.0.0" else _other(conversion)
            path.write_bytes(package(signer, version, blob, named))
            server.client.upload(path, "wrist")

        def shown() -> Any:
            found = server.client.device(identity.device_id)["boards"]
            return found[0] if found else {}

        with Device.open(config) as device:
            wait(lambda: shown().get("state") == "online")
            server.client.deploy("activity", "1.0.0")
            first = _deployed(server, "1.0.0")
            wait(lambda: _states(server, first) == ["confirmed", "confirmed"])
            wait(lambda: shown()["model_version"] == "1.0.0")
            model = device.model("activity")
            wait(lambda: model.metrics.rollup()["windows"] > 20)  # type: ignore[operator]
            assert model.metrics.rollup()["errors"] == 0
            wait(lambda: sum(item["windows"] for item in server.client.metrics(model="wrist")) > 20)

            second = _deployed(server, "2.0.0")
            wait(lambda: _states(server, second) == ["confirmed", "confirmed"])
            server.client.command("all", "rollback", {"model": "wrist"})
            wait(lambda: shown()["model_version"] == "1.0.0" and shown()["state"] == "online")

            third = _deployed(server, "3.0.0")  # its channels are in another order
            wait(lambda: _states(server, third)[:1] == ["rolled_back"])
            assert shown()["model_version"] == "1.0.0"
            bad = _with_wrong_vectors(conversion)
            with pytest.raises(ModelError, match="self-test vector 0"):
                device.agent.install(_unprobed(signer, "4.0.0", bad, channels))
            assert device.slots()["wrist"].active.version == "1.0.0"  # type: ignore[union-attr]

            wait(lambda: server.client.events(model="wrist"), 240.0)  # the watch is worn differently from row 12,000 on
            event = server.client.events(model="wrist")[0]
            assert event["board"] == "watch-7" and event["signal"] in channels
            assert event["statistic"] > event["threshold"]


def _deployed(server: Sphere, version: str) -> int:
    return int(server.client.deploy("wrist", version)["id"])


def _states(server: Sphere, deployment: int) -> list[str]:
    """Of the device, then of its boards."""
    found = server.client.deployment(deployment)["devices"]
    return [found[0]["state"], *(board["state"] for board in found[0]["boards"])] if found else []


def _other(conversion: Conversion) -> bytes:
    """The same model with another hop: other bytes that decide the same."""
    return write_model(replace(read_model(conversion.blob), hop=5))


def _with_wrong_vectors(conversion: Conversion) -> bytes:
    model = read_model(conversion.blob)
    return write_model(replace(model, vectors=tuple(replace(v, score=ONE - v.score) for v in model.vectors)))


def _unprobed(signer: Signer, version: str, blob: bytes, channels: tuple[str, ...]) -> bytes:
    """Signed by a publisher that never ran it."""
    without = write_model(replace(read_model(blob), vectors=()))
    manifest = parse_package(package(signer, version, without, channels), None).manifest
    return build_package(replace(manifest, golden=None), {"model.board": blob}, signer)
