"""A machine that refuses: folders without permission (as a user who is not root), and full disks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import make_package, make_signer, write_keys
from tinylcm import Device, DeviceError
from tinylcm.config import DeviceConfig, JournalConfig, ModelConfig, TrialConfig
from tinylcm.slots import State

SMALL = JournalConfig(
    journal_bytes_max=512 << 10, events_bytes_max=128 << 10, segment_bytes_max=16 << 10, commit_interval_s=0.0
)

# The interpreter may live where nobody can read, so it is loaded first and steps down afterwards.
STEP_DOWN = """
import importlib, os, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))
"""
LOADED = (
    "encodings.ascii,tinylcm.cli,tinylcm.device,tinylcm.doctor,tinylcm.keys,tinylcm.backends.onnx,"
    "tinysphere.app,tinysphere.cli,tinysphere.protocol,uvicorn,uvloop"
)


def as_nobody(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of our commands as a user that owns nothing (as ourselves when we are not root)."""
    return subprocess.run(
        [sys.executable, "-c", STEP_DOWN, LOADED, module, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that anybody may enter, with a locked one inside."""
    folder = Path("/tmp") / f"tinymlops-{os.getpid()}-{time.monotonic_ns()}"  # tmp_path is closed to others
    for path, mode in ((folder, 0o755), (folder / "locked", 0o555)):
        path.mkdir()
        path.chmod(mode)  # whatever the umask is
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["tinylcm.cli", "sync"], "no permission for user id"),
        (["tinylcm.cli", "keys", "init", "locked/keys"], "no permission for user id"),
        (["tinysphere.cli", "serve", "--port", "0", "--data", "locked/server"], "no permission for user id"),
        (["tinysphere.cli", "token", "create", "--role", "viewer", "--data", "locked/server"], "no permission"),
    ],
)
def test_a_folder_without_permission_is_one_clear_line(open_folder: Path, command: list[str], said: str) -> None:
    (open_folder / "device.toml").write_text('[device]\ndata = "locked/data"\n')
    (open_folder / "device.toml").chmod(0o644)
    result = as_nobody(*command, cwd=open_folder)
    (open_folder / "device.toml").unlink()
    assert result.returncode in (1, 2)
    assert said in result.stderr and "locked" in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1


def test_a_folder_that_may_not_even_be_entered_is_one_clear_line(open_folder: Path) -> None:
    open_folder.chmod(0o700)
    for module, command in (("tinylcm.cli", ["status"]), ("tinysphere.cli", ["trust", "r.pub", "--data", "d"])):
        result = as_nobody(module, *command, cwd=open_folder)
        assert result.returncode in (1, 2)
        assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1


def test_doctor_names_the_folder_that_cannot_be_written(open_folder: Path) -> None:
    (open_folder / "device.toml").write_text('[device]\ndata = "locked/data"\n')
    (open_folder / "device.toml").chmod(0o644)
    result = as_nobody("tinylcm.cli", "doctor", cwd=open_folder)
    (open_folder / "device.toml").unlink()
    assert result.returncode == 1
    assert "FAILS   data folder" in result.stdout and "chown" in result.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system can only be mounted by root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    ballast = disk / "ballast"
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    for size in (4096, 1):
        try:
            while True:
                os.write(handle, b"x" * size)
        except OSError:
            continue
    os.close(handle)
    return ballast


def test_a_full_disk_stops_no_prediction_and_loses_no_event(small_disk: Path) -> None:
    write_keys(small_disk / "device" / "trust", make_signer())
    config = DeviceConfig(small_disk / "device", journal=SMALL)
    with Device.open(config, background=False) as device:
        device.agent.install(make_package())
        model = device.model("gesture")
        device.journal.flush(5)
        before = len(device.journal.read("events", 1000, 1 << 20))
        ballast = fill(small_disk)
        for index in range(50):
            assert model.infer(np.ones(3)).label
            device.label(f"p-{index}", "class-1" * 50)
        deadline = time.monotonic() + 10
        while device.journal.stats().failed is None and time.monotonic() < deadline:
            time.sleep(0.02)
        failed = device.journal.stats().failed
        assert failed is not None and "full" in failed.lower()
        ballast.unlink()
        device.journal.flush(30)
        assert device.journal.stats().failed is None
        labels = [record for record in device.journal.read("events", 1000, 1 << 20) if record.type == "label"]
        assert [record.payload["prediction"] for record in labels] == [f"p-{index}" for index in range(50)]
        assert before >= 2


def test_a_device_that_starts_on_a_full_disk_predicts_and_its_trial_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylcm.device.CLOSE_TIMEOUT_S", 0.5)
    write_keys(small_disk / "device" / "trust", make_signer())
    (small_disk / "second.tlm").write_bytes(make_package(name="second"))
    config = DeviceConfig(small_disk / "device", journal=SMALL, trial=TrialConfig(windows=3))
    with Device.open(config, background=False) as device:
        device.agent.install(make_package())
    config = replace(config, models={"second": ModelConfig(package=small_disk / "second.tlm")})
    ballast = fill(small_disk)
    device = Device.open(config, background=False)
    model = device.model("gesture")
    assert "disk is full" in device.agent.last_error  # the second model has no room
    for _ in range(5):
        device.agent.tick()
        assert model.infer([1, 2, 3]).version == "1.0.0"
    device.agent.tick()
    assert device.slots()["gesture"].state is State.CONFIRMED
    with pytest.raises(DeviceError, match=r"records are not durable: .*the disk is full"):
        device.close()
    ballast.unlink()
    with Device.open(config, background=False) as device:
        assert device.slots()["gesture"].state is State.TRIAL  # the disk never heard of it
        assert device.model("second").infer([1, 2, 3]).label


def test_a_package_that_fails_its_trial_on_a_full_disk_is_left_and_never_confirmed(small_disk: Path) -> None:
    write_keys(small_disk / "device" / "trust", make_signer())
    trial = TrialConfig(windows=3, latency_p95_us=1e9)
    config = DeviceConfig(small_disk / "device", journal=SMALL, trial=trial)
    with Device.open(config, background=False) as device:
        device.agent.install(make_package())
        model = device.model("gesture")
        predict(device, 3)
        device.agent.install(make_package(version="2.0.0"))
        ballast = fill(small_disk)
        device.agent._installer.trial = replace(trial, latency_p95_us=1e-9)
        predict(device, 3)
        device.agent._installer.trial = trial
        predict(device, 6)
        assert model.infer([1, 2, 3]).version == "1.0.0"
        slot = device.slots()["gesture"]
        assert slot.state is State.CONFIRMED and slot.active is not None and slot.active.version == "1.0.0"
        ballast.unlink()
        device.agent.tick()
    with Device.open(config, background=False) as device:
        slot = device.slots()["gesture"]
        assert slot.state is State.CONFIRMED and slot.active is not None and slot.active.version == "1.0.0"


def test_a_rollback_by_hand_that_the_disk_refuses_says_so(small_disk: Path) -> None:
    write_keys(small_disk / "device" / "trust", make_signer())
    config = DeviceConfig(small_disk / "device", journal=SMALL, trial=TrialConfig(windows=3))
    with Device.open(config, background=False) as device:
        device.agent.install(make_package())
        predict(device, 3)
        device.agent.install(make_package(version="2.0.0"))
        ballast = fill(small_disk)
        with pytest.raises(DeviceError, match="disk is full"):
            device.agent.rollback("gesture")
        assert device.model("gesture").infer([1, 2, 3]).version == "1.0.0"
        ballast.unlink()


def predict(device: Device, windows: int) -> None:
    """So many windows, and the agent's turn before and after them."""
    model = device.model("gesture")
    device.agent.tick()
    for _ in range(windows):
        model.infer([1, 2, 3])
    device.agent.tick()


def test_a_package_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    write_keys(small_disk / "device" / "trust", make_signer())
    with Device.open(DeviceConfig(small_disk / "device"), background=False) as device:
        device.agent.install(make_package())
        device.journal.flush(5)
        ballast = fill(small_disk)
        with pytest.raises(DeviceError, match="disk is full"):
            device.agent.install(make_package(version="2.0.0"))
        assert device.model("gesture").infer([1, 2, 3]).version == "1.0.0"
        ballast.unlink()
        device.agent.install(make_package(version="2.0.0"))
        assert device.model("gesture").infer([1, 2, 3]).version == "2.0.0"
