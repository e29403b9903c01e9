"""Revocation, new roots and trials on a whole device: what runs, what is refused, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clocks import ManualClock
from models import linear_model, make_package, make_signer, manifest_of, write_keys
from tinylcm import Device, ModelError
from tinylcm.config import DeviceConfig, TrialConfig
from tinylcm.keys import KeySet, PrivateKey, ReleaseKey, Revocation, Rotation, Signer, accept_statement, fingerprint
from tinylcm.manifest import MonitorSpec
from tinylcm.package import build_package
from tinylcm.slots import State

ROOT, RELEASE, NEXT = (PrivateKey(bytes([seed]) * 32) for seed in (1, 101, 55))
WINDOWS = 4


@pytest.fixture
def config(tmp_path: Path) -> DeviceConfig:
    write_keys(tmp_path / "trust", make_signer())
    return DeviceConfig(tmp_path, trial=TrialConfig(windows=WINDOWS))


@pytest.fixture
def device(config: DeviceConfig) -> Iterator[Device]:
    with Device.open(config, clock=ManualClock(), background=False) as opened:
        yield opened


def install(device: Device, version: str, counter: int = 0, signer: Signer | None = None) -> None:
    device.agent.install(make_package(version=version, security_counter=counter, signer=signer))


def run(device: Device) -> str:
    """Predict through a trial; the version that predicts then."""
    model = device.model("gesture")
    device.agent.tick()
    for _ in range(WINDOWS):
        model.infer([1, 2, 3])
    device.agent.tick()
    return model.infer([1, 2, 3]).version


def floor(number: int, *, serial: int = 1, root: PrivateKey = ROOT) -> Revocation:
    return Revocation.sign(root, {"gesture": number}, frozenset(), serial=serial)


def told(device: Device, state: str) -> list[str]:
    device.journal.flush(5)
    records = device.journal.read("events", 100, 1 << 20)
    return [str(r.payload["version"]) for r in records if r.type == "deployment" and r.payload["state"] == state]


def test_an_active_package_that_is_revoked_gives_way_to_the_one_before(device: Device) -> None:
    for version, counter in (("1.0", 5), ("2.0", 3)):
        install(device, version, counter)
        assert run(device) == version
    broken = make_package(version="3.0", security_counter=5, signer=replace(make_signer(), statements=(floor(5),)),
                          wrong_golden=True)  # fmt: skip
    with pytest.raises(ModelError, match="golden window"):
        device.agent.install(broken)  # what it says of the root counts, whatever becomes of it
    assert device.model("gesture").infer([1, 2, 3]).version == "1.0"
    assert told(device, "rolled_back") == ["2.0"]
    with pytest.raises(ModelError, match="security counter is 3, this device takes 5"):
        install(device, "2.0", 3)


def test_the_last_package_runs_on_and_says_so_at_each_start(
    config: DeviceConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with Device.open(config, background=False) as device:
        install(device, "1.0", 1)
        run(device)
    accept_statement(config.data / "trust", floor(2).to_json())
    for _ in range(2):
        caplog.clear()
        with Device.open(config, background=False) as device:
            assert device.slots()["gesture"].floor == 2
            assert device.model("gesture").infer([1, 2, 3]).version == "1.0"
            assert "gesture 1.0 runs on although it must not" in caplog.text
    with Device.open(config, background=False) as device:
        install(device, "2.0", 2)
        assert run(device) == "2.0"
        with pytest.raises(ModelError, match="no earlier package"):
            device.agent.rollback("gesture")  # the revoked one was let go with the confirmation


def test_a_rollback_to_a_revoked_package_is_refused(config: DeviceConfig) -> None:
    with Device.open(config, background=False) as device:
        for version, counter in (("1.0", 1), ("2.0", 2)):
            install(device, version, counter)
            assert run(device) == version
        accept_statement(config.data / "trust", floor(2).to_json())
        install(device, "2.1", 2)  # in its trial: the earlier one is 2.0
        assert device.agent.rollback("gesture").active.version == "2.0"  # type: ignore[union-attr]
    with Device.open(config, background=False) as device:
        install(device, "2.2", 2)
        run(device)
        accept_statement(config.data / "trust", floor(3, serial=2).to_json())
        with pytest.raises(ModelError, match="the publisher has revoked it"):
            device.agent.install(make_package(version="2.3", security_counter=2))
        with pytest.raises(ModelError, match=r"version 2\.0 is not rolled back to: .*revoked it"):
            device.agent.rollback("gesture")


def test_a_revoked_release_key_takes_its_packages_back(config: DeviceConfig) -> None:
    new = PrivateKey(bytes([77]) * 32)
    both = KeySet.sign(ROOT, tuple(ReleaseKey(key.public, 4_000_000_000) for key in (new, RELEASE)), serial=1)
    with Device.open(config, background=False) as device:
        install(device, "1.0", signer=Signer(new, both))
        run(device)
        install(device, "2.0", signer=Signer(RELEASE, both))
        run(device)
    revoked = Revocation.sign(ROOT, {}, frozenset({fingerprint(RELEASE.public)}), serial=1)
    accept_statement(config.data / "trust", revoked.to_json())
    with Device.open(config, background=False) as device:
        assert device.model("gesture").infer([1, 2, 3]).version == "1.0"
        assert told(device, "rolled_back") == ["2.0"]


def test_a_new_root_comes_with_a_package_and_the_old_one_installs_no_more(device: Device) -> None:
    install(device, "1.0")
    run(device)
    other = PrivateKey(bytes([78]) * 32)
    keyset = KeySet.sign(NEXT, (ReleaseKey(other.public, 4_000_000_000),), serial=1)
    install(device, "2.0", signer=Signer(other, keyset, (Rotation.sign(ROOT, NEXT),)))
    assert run(device) == "2.0"
    with pytest.raises(ModelError, match="is not in the newest key set"):
        install(device, "3.0")  # signed under the old root
    assert device.agent.rollback("gesture").active.version == "1.0"  # type: ignore[union-attr]
    assert device.model("gesture").infer([1, 2, 3]).version == "1.0"  # what is installed stays


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"latency_p95_us": 0.001}, "95 % of its predictions took up to"),
        ({"latency_factor": 1e-6}, "95 % of its predictions took up to"),
        ({"confidence_min": 1.0}, "mean confidence"),
    ],
)
def test_a_trial_outside_its_bounds_brings_the_earlier_package_back(
    config: DeviceConfig, bounds: dict[str, float], reason: str
) -> None:
    with Device.open(config, background=False) as device:
        install(device, "1.0")
        run(device)
    judged = replace(config, trial=replace(config.trial, **bounds))
    with Device.open(judged, background=False) as device:
        device.model("gesture").infer([1, 2, 3])
        install(device, "2.0")
        assert run(device) == "1.0"
        slot = device.slots()["gesture"]
        assert (slot.state, slot.active.version) == (State.CONFIRMED, "1.0")  # type: ignore[union-attr]
        assert told(device, "rolled_back") == ["2.0"]
        device.journal.flush(5)
        assert reason in str(device.journal.read("events", 100, 1 << 20)[-1].payload["reason"])


def test_a_trial_that_raises_too_many_alarms_brings_the_earlier_package_back(config: DeviceConfig) -> None:
    watching = replace(
        manifest_of(version="2.0"),
        monitors=tuple(
            MonitorSpec(name, "confidence", "Limit", {"threshold": 0.9, "patience": 1}) for name in ("one", "two")
        ),
    )
    for alarms_max, version in ((1000, "2.0"), (1, "1.0")):
        folder = config.data / str(alarms_max)
        write_keys(folder / "trust", make_signer())
        judged = replace(config, data=folder, trial=replace(config.trial, windows=40, alarms_max=alarms_max))
        with Device.open(judged, background=False) as device:
            install(device, "1.0")
            model = device.model("gesture")
            for _ in range(41):
                model.infer([1, 2, 3])
                device.agent.tick()
            device.agent.install(build_package(watching, {"model.onnx": linear_model()}, make_signer()))
            for _ in range(41):
                model.infer([-100, 200, 300])
                device.agent.tick()
            assert model.infer([1, 2, 3]).version == version
            assert (device.slots()["gesture"].state, model.pipeline.alarms > 1) == (State.CONFIRMED, True)
