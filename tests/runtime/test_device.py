"""A device without a server: everything works."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import linear_model, make_package, make_signer, manifest_of, write_keys
from tinylcm import ConfigError, Device, DeviceError, ModelError, ServerError, WireError
from tinylcm.config import DeviceConfig, JournalConfig, ModelConfig, TrialConfig
from tinylcm.device import enrol
from tinylcm.manifest import MonitorSpec
from tinylcm.package import build_package
from tinylcm.slots import State


def _package(config: DeviceConfig) -> Path:
    path = config.models["gesture"].package
    assert path is not None
    return path


@pytest.fixture
def config(tmp_path: Path) -> DeviceConfig:
    data = tmp_path / "data"
    write_keys(data / "trust", make_signer())
    package = tmp_path / "gesture.tlm"
    package.write_bytes(make_package())
    return DeviceConfig(
        data, metrics_interval_s=0.05, trial=TrialConfig(windows=10), models={"gesture": ModelConfig(package)}
    )


def test_a_stand_alone_device_streams_confirms_and_journals(config: DeviceConfig) -> None:
    with Device.open(config) as device:
        model = device.model("gesture")
        predictions = list(model.stream([np.ones((200, 3), dtype=np.float32)]))
        device.label(predictions[0].id, "class-1")
        deadline = time.monotonic() + 10
        while device.slots()["gesture"].state is not State.CONFIRMED and time.monotonic() < deadline:
            model.infer([1, 2, 3])
            time.sleep(0.05)
        assert device.slots()["gesture"].state is State.CONFIRMED
        with pytest.raises(ServerError, match="not enrolled"):
            device.sync()
    with Device.open(config, background=False) as again:
        events = [record.type for record in again.journal.read("events", 100, 1 << 20)]
        details = again.journal.read("details", 100, 1 << 20)
    assert events == ["deployment", "deployment", "label", "deployment"]
    assert sum(int(record.payload["windows"]) for record in details) >= 200  # type: ignore[arg-type]


def test_a_model_that_is_not_there_says_what_is_and_what_to_do(config: DeviceConfig) -> None:
    with (
        Device.open(config, background=False) as device,
        pytest.raises(ConfigError, match=r"no model 'walk' .*there is: gesture.*deploy"),
    ):
        device.wait_for_model("walk", 0.1)


def test_a_damaged_active_package_falls_back_to_the_earlier_one(config: DeviceConfig) -> None:
    config = replace(config, trial=TrialConfig(windows=1))
    with Device.open(config, background=False) as device:
        model = device.model("gesture")
        device.agent.tick()
        model.infer([1, 2, 3])
        device.agent.tick()
        device.agent.install(make_package(version="2.0.0"))
        active = device.slots()["gesture"].active
        assert active is not None
    (config.data / "packages" / f"{active.sha256}.tlm").write_bytes(b"rot")
    with Device.open(config, background=False) as device:
        assert device.model("gesture").manifest.version == "1.0.0"


def test_a_damaged_only_package_is_an_error(config: DeviceConfig) -> None:
    with Device.open(config, background=False) as device:
        active = device.slots()["gesture"].active
        assert active is not None
        (config.data / "packages" / f"{active.sha256}.tlm").write_bytes(b"rot")
        with pytest.raises(ModelError):
            device.model("gesture")


def test_a_label_that_the_journal_refuses_is_said_to_the_caller(config: DeviceConfig) -> None:
    with Device.open(config, background=False) as device, pytest.raises(WireError):
        device.label("p", "x" * (1 << 20))


def test_two_processes_cannot_hold_one_device(config: DeviceConfig) -> None:
    with Device.open(config, background=False), pytest.raises(DeviceError):
        Device.open(config, background=False)


def test_a_configured_package_that_is_not_trusted_is_refused(config: DeviceConfig) -> None:
    _package(config).write_bytes(make_package(signer=make_signer(5)))
    with pytest.raises(ModelError, match="not trusted here"):
        Device.open(config)
    _package(config).write_bytes(make_package())
    Device.open(config).close()  # and the folder is free again


def test_enrolment_refuses_what_is_not_safe(config: DeviceConfig) -> None:
    root = "sha256:" + "a" * 64
    with pytest.raises(ConfigError, match="no join string"):
        enrol(config, "hello")
    with pytest.raises(ConfigError, match="--insecure"):
        enrol(config, f"tinysphere+http://192.0.2.7:80/join#token=t&root={root}")
    assert not (config.data / "identity.json").exists()


def test_monitors_go_on_after_a_restart_and_a_torn_state_is_no_obstacle(
    config: DeviceConfig, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = replace(
        manifest_of(), monitors=(MonitorSpec("confidence", "confidence", "Limit", {"threshold": 0.01, "patience": 30}),)
    )
    package = config.data / "monitored.tlm"
    package.write_bytes(build_package(manifest, {"model.onnx": linear_model()}, make_signer()))
    config = replace(config, models={"gesture": ModelConfig(package)})

    def alarms(windows: int) -> int:
        with Device.open(config, background=False) as device:
            return sum(len(device.model("gesture").infer([1, 2, 3]).drift) for _ in range(windows))

    assert alarms(20) == 0
    assert alarms(20) == 1  # the thirtieth window in a row, ten of them after the restart
    state = config.data / "monitors" / "gesture.state"
    state.write_bytes(state.read_bytes()[:-5])
    assert alarms(20) == 0
    assert "begin anew" in caplog.text


def test_what_is_urgent_here_reaches_the_disk_at_once(config: DeviceConfig) -> None:
    journal = JournalConfig(commit_interval_s=3600.0, urgent=("sample",))
    with Device.open(replace(config, journal=journal), background=False) as device:
        slow = device.journal.append("details", "summary", {})
        quick = device.journal.append("details", "sample", {})
        assert quick.result(10).seq == 2 and slow.result(10).seq == 1
        assert not device.journal.append("details", "summary", {}).done()
