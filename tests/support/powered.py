"""Scenarios for tests/torture/test_power_cuts.py: each prints what it believes, as it comes to believe it.

Lines on standard output are JSON: `durable` when a record's future resolved, `acknowledging` before the journal is told
that a server has a record, `slot` before and after a change of a slot.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clocks import ManualClock
from models import make_package, make_signer, write_keys
from tinylcm import Device, installer
from tinylcm.config import DeviceConfig, JournalConfig, TrialConfig
from tinylcm.files import fsync_folder
from tinylcm.journal import Journal, JournalLimits
from tinylcm.keys import KeySet, PrivateKey, ReleaseKey, Revocation, Rotation, Signer
from tinylcm.package import load_package
from tinylcm.probe import check_golden
from tinylcm.types import Record, Stream

LIMITS = JournalLimits(
    journal_bytes_max=64 << 10, events_bytes_max=24 << 10, segment_bytes_max=4 << 10, commit_interval_s=0.0
)


def say(**values: object) -> None:
    """One line, whole, in one system call."""
    os.write(1, json.dumps(values).encode() + b"\n")


def text_of(n: int) -> str:
    """What record `n` says, so that a wrong one shows."""
    return f"{n:06d}-" + "abcdefgh"[n % 8] * (60 + n % 150)


def journal(folder: Path) -> None:
    """Two openings, both streams, groups and single commits, reading, acknowledging, and details over their budget."""
    n = 0
    for opening in range(2):
        with Journal.open(folder, LIMITS, ManualClock()) as opened:
            for step in range(40):
                futures = []
                for _ in range(1 + step % 4):
                    for stream in ("events", "details"):
                        if stream == "events" and step % 3:
                            continue
                        futures.append((stream, n, opened.append(stream, "note", {"n": n, "text": text_of(n)})))
                        n += 1
                for stream, number, future in futures:
                    tell(stream, number, future.result(20))
                if step % 5 == 4 and opening == 0:
                    settle(opened, "events", 4)
                if step == 30:
                    settle(opened, "details", 20)
            opened.flush(20)


def tell(stream: str, number: int, record: Record) -> None:
    """The journal has promised to keep this one."""
    say(durable=[stream, record.epoch, record.seq, number])


def settle(opened: Journal, stream: Stream, count: int) -> None:
    """A server has committed the oldest records."""
    records = opened.read(stream, count, 1 << 20)
    if records:
        say(acknowledging=[stream, records[-1].epoch, records[-1].seq])
        opened.acknowledge(stream, records[-1].epoch, records[-1].seq)
        opened.flush(20)


def reopen(folder: Path) -> None:
    """Recovery, and a little more."""
    with Journal.open(folder, LIMITS, ManualClock()) as opened:
        for n in range(900_000, 900_004):
            tell("details", n, opened.append("details", "note", {"n": n, "text": text_of(n)}).result(20))
        settle(opened, "events", 2)


# A device's model: installed, updated, rolled back, updated with a revocation that moves its root too.

ROOT, RELEASE, NEXT = (PrivateKey(bytes([seed]) * 32) for seed in (1, 101, 55))
MOVED = Signer(
    RELEASE,
    KeySet.sign(NEXT, (ReleaseKey(RELEASE.public, 4_102_444_800),), serial=9),
    (Rotation.sign(ROOT, NEXT), Revocation.sign(NEXT, {"gesture": 5}, frozenset(), serial=9)),
)
FLOOR = 5
PACKAGES = {
    "1.0.0": {"security_counter": FLOOR},  # where the device goes when 1.1.0 is revoked
    "1.1.0": {"security_counter": 2},
    "2.0.0": {"security_counter": FLOOR, "signer": MOVED},
    "2.1.0": {"security_counter": FLOOR, "signer": MOVED},
}
WINDOWS = 3


def configure(folder: Path) -> DeviceConfig:
    """A device without a server."""
    return DeviceConfig(folder, trial=TrialConfig(windows=WINDOWS), journal=JournalConfig(commit_interval_s=0.0))


@contextmanager
def probed_here() -> Iterator[None]:
    """The golden windows run in this process: the child would change no file either."""
    real = installer.probe
    installer.probe = lambda path, **limits: check_golden(load_package(path, None))  # type: ignore[assignment]
    try:
        yield
    finally:
        installer.probe = real


def predict(device: Device) -> str:
    """Run through a trial; the version that predicted last."""
    model = device.model("gesture")
    for _ in range(WINDOWS):
        version = model.infer([1, 2, 3]).version
    device.agent.tick()
    return version


def slots(folder: Path) -> None:
    """Each step is a start of the device."""
    write_keys(folder / "trust", make_signer())
    for path in (folder, folder / "trust"):
        fsync_folder(path)
    steps = [("install", version) for version in PACKAGES]
    steps.append(("rollback", "2.0.0"))
    with probed_here():
        for step, version in steps:
            say(begun=version)
            with Device.open(configure(folder), clock=ManualClock(), background=False) as device:
                if step == "install":
                    device.agent.install(make_package(version=version, **PACKAGES[version]))  # type: ignore[arg-type]
                else:
                    device.agent.rollback("gesture")
                predict(device)
                slot = device.slots()["gesture"]
                assert slot.active is not None and slot.active.version == version, slot
                say(ended=version, floor=slot.floor)


SCENARIOS = {"journal": journal, "reopen": reopen, "slots": slots}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
