"""A model update is killed at every step, one after the other: a valid model always runs, and the update completes.

A step is a change of a file below the device's folder (create, half a write, fsync, rename, unlink, mkdir) from the
start of the device to the confirmed update, the journal's own apart. After each cut the folder is taken over by a new
device. By default the probe runs in this process, which changes no file; with TINYMLOPS_TORTURE=1 it runs in its child
as always, and every step of the recovery is cut too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cuts import Cutter, Killed
from models import make_package, make_signer, write_keys
from scripted import Reply, Request, scripted_server
from tinylcm import Device, installer
from tinylcm.config import DeviceConfig, ServerConfig, TrialConfig
from tinylcm.errors import ModelError
from tinylcm.identity import Identity, save_identity
from tinylcm.keys import KeySet, PrivateKey, ReleaseKey, Revocation, Rotation, Signer
from tinylcm.package import Package, load_package, parse_package
from tinylcm.probe import check_golden
from tinylcm.slots import State
from tinylcm.wire import Desired, DesiredModel, SyncResponse, encode

FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))
SKIP = ("journal",)
WINDOWS = 3
SIGNER = make_signer()
ROOT, RELEASE, NEXT = (PrivateKey(bytes([seed]) * 32) for seed in (1, 101, 55))
REVOCATION = Revocation.sign(NEXT, {"gesture": 5}, frozenset(), serial=9)
# The update hands over to a new root and raises the floor, in one package.
MOVED = Signer(
    RELEASE,
    KeySet.sign(NEXT, (ReleaseKey(RELEASE.public, 4_102_444_800),), serial=9),
    (Rotation.sign(ROOT, NEXT), REVOCATION),
)
# What was installed before, oldest first, and what comes. Beside each its security counter.
STORIES = {
    "update": ([make_package(version="1.0.0", security_counter=2)], make_package(version="2.0.0", security_counter=2)),
    "revocation": (
        [make_package(version="1.0.0", security_counter=5), make_package(version="1.1.0", security_counter=3)],
        make_package(version="2.0.0", security_counter=5, signer=MOVED),
    ),
}


class Peer:
    """A server that offers one package, and acknowledges nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        package = parse_package(data, None)
        wanted = DesiredModel(
            model="gesture",
            version=package.manifest.version,
            sha256=package.sha256,
            size=len(data),
            url=f"/api/v1/packages/{package.sha256}",
            deployment=7,
        )
        desired = Desired(8, (wanted,))
        self._answer = encode(SyncResponse({"events": None, "details": None}, "instance", 1.0, 0.0, desired))

    def answer(self, request: Request) -> Reply:
        if not request.path.startswith("/api/v1/packages/"):
            return Reply(body=self._answer, headers={"Content-Type": "application/json"})
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if not start:
            return Reply(body=self._data)
        size = len(self._data)
        return Reply(206, self._data[start:], {"Content-Range": f"bytes {start}-{size - 1}/{size}"})


def configure(data: Path) -> DeviceConfig:
    return DeviceConfig(data, server=ServerConfig(timeout_s=5), trial=TrialConfig(windows=WINDOWS))


def run(device: Device, windows: int = WINDOWS) -> str:
    """Predict through a trial; the version that predicted last."""
    model = device.model("gesture")
    device.agent.tick()
    for _ in range(windows):
        prediction = model.infer([1, 2, 3])
    device.agent.tick()
    return prediction.version


def prepare(data: Path, url: str, packages: list[bytes]) -> None:
    """A device on which these packages were installed and confirmed, one after the other."""
    write_keys(data / "trust", SIGNER)
    with Device.open(configure(data), background=False) as device:
        for package in packages:
            device.agent.install(package)
            run(device)
    save_identity(data / "identity.json", Identity("s" * 64, url, "sha256:" + "0" * 64, "d" + "a" * 12))


def update(data: Path) -> None:
    """From the start of the device to the confirmed update."""
    with Device.open(configure(data), background=False) as device:
        device.model("gesture").infer([1, 2, 3])
        device.sync()
        run(device)


def cut(data: Path, after: Path, kill_at: int, action: object = update) -> list[str]:
    """Do it until the process is killed; what lies on the disk then is copied. The steps that were taken."""
    assert callable(action)
    with Cutter(data, skip=SKIP, kill_at=kill_at) as cutter, suppress(Killed):
        action(data)
    if kill_at:
        assert cutter.dead, f"step {kill_at} was never reached"
        shutil.copytree(data, after)
    return cutter.steps


def active(device: Device) -> Package:
    """The package that the slot says runs."""
    held = device.slots()["gesture"].active
    assert held is not None
    return load_package(device.config.data / "packages" / f"{held.sha256}.tlm", None)


def check(data: Path, story: str, step: str) -> None:
    """A new device over what was left: something valid runs, and the update completes."""
    before, new = STORIES[story]
    versions = {parse_package(package, None).manifest.version for package in (*before, new)}
    with Device.open(configure(data), background=False) as device:
        slot, package = device.slots()["gesture"], active(device)
        assert package.manifest.security_counter >= slot.floor, step
        assert device.model("gesture").infer([1, 2, 3]).version == package.manifest.version, step
        assert package.manifest.version in versions, step
        device.sync()
        assert run(device) == "2.0.0", step
        slot = device.slots()["gesture"]
        assert (slot.state, active(device).manifest.version) == (State.CONFIRMED, "2.0.0"), step
        assert slot.floor == (5 if story == "revocation" else 0), step
        with pytest.raises(ModelError, match="the publisher has revoked it"):
            if story != "revocation":
                raise ModelError("the publisher has revoked it")
            device.agent.install(before[1])
    left = {path.name for folder in ("packages", "slots") for path in (data / folder).iterdir()}
    held = {held.sha256 for held in (slot.active, slot.previous) if held is not None}
    assert left <= {"gesture.json", *(f"{sha256}.tlm" for sha256 in held)}, step


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    if not FULL:
        monkeypatch.setattr(installer, "probe", lambda path, **_: check_golden(load_package(path, None)))


@pytest.fixture(params=STORIES)
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A story, and the folder that its device begins with."""
    before, new = STORIES[request.param]
    with scripted_server(Peer(new).answer) as (url, _):
        prepare(tmp_path / "before", url, before)
        yield request.param, tmp_path / "before"


@pytest.mark.usefixtures("in_process")
def test_an_update_that_is_killed_at_any_step_leaves_a_model_that_runs(
    story: tuple[str, Path], tmp_path: Path, report: Callable[..., None]
) -> None:
    name, before = story
    shutil.copytree(before, tmp_path / "whole")
    steps = cut(tmp_path / "whole", tmp_path / "none", 0)
    assert len(steps) > 30 and any(step.startswith("write first half packages/") for step in steps)
    cuts = 0
    for number in range(1, len(steps) + 1):
        begun, left = tmp_path / f"b{number}", tmp_path / f"l{number}"
        shutil.copytree(before, begun)
        step = f"step {number}: {cut(begun, left, number)[-1]}"
        cuts += 1 + (_cut_recovery(left, tmp_path, name, step) if FULL else 0)
        check(left, name, step)
        shutil.rmtree(begun)
        shutil.rmtree(left)
    report(f"an update cut at every step ({name})", steps=len(steps), cuts=cuts)


def _cut_recovery(left: Path, tmp_path: Path, name: str, step: str) -> int:
    """Kill the device that takes over, too, at each step of its start."""

    def start(data: Path) -> None:
        Device.open(configure(data), background=False).close()

    shutil.copytree(left, tmp_path / "again")
    steps = cut(tmp_path / "again", tmp_path / "none", 0, start)
    shutil.rmtree(tmp_path / "again")
    for number in range(1, len(steps) + 1):
        shutil.copytree(left, tmp_path / "again")
        second = cut(tmp_path / "again", tmp_path / "twice", number, start)[-1]
        check(tmp_path / "twice", name, f"{step}, then {second}")
        shutil.rmtree(tmp_path / "again")
        shutil.rmtree(tmp_path / "twice")
    return len(steps)


def test_the_cutter_lets_nothing_happen_after_the_kill(tmp_path: Path) -> None:
    from tinylcm.files import write_atomic

    (tmp_path / "a").write_bytes(b"old")
    steps = []
    for kill_at in range(1, 20):
        with Cutter(tmp_path, kill_at=kill_at) as cutter, suppress(Killed):
            write_atomic(tmp_path / "a", b"new!")
        steps = cutter.steps
        if not cutter.dead:
            break
        renamed = steps[-1] == "fsync ."
        assert (tmp_path / "a").read_bytes() == (b"new!" if renamed else b"old"), steps
        for path in tmp_path.glob(".*"):
            path.unlink()
        (tmp_path / "a").write_bytes(b"old")
    assert [step.split()[0] for step in steps] == ["create", "write", "write", "fsync", "replace", "fsync"]
