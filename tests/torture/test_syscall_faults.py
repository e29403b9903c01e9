"""Faults of the operating system at every call of every kind: nothing acknowledged is lost, every error is a clear one.

strace injects them into a real device's process: an error (the call is not made), or a SIGKILL at the call. A call is
counted in the thread that makes it, so one run may meet a fault once in each of the device's threads. By default two
places a kind of call and fault, with TINYMLOPS_TORTURE=1 every one; TINYMLOPS_PLACES sets another number.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import faulted
import numpy as np
import pytest
from models import make_signer, manifest_of, write_keys
from tinylcm import Device
from tinylcm.backends.linear import linear_arrays
from tinylcm.package import build_package

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))
ERRORS = {
    "write": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO",),
    "openat": ("EROFS", "ENOSPC", "EIO"),
    "mkdir": ("EROFS", "ENOSPC"),
    "rename": ("EROFS", "EIO", "ENOSPC"),
    "unlink": ("EROFS", "EIO"),
    "pwrite64": ("EIO", "ENOSPC"),
    "pread64": ("EIO",),
    "flock": ("EIO",),
}
FILLED = ("write", "pwrite64", "rename", "mkdir")  # what a full file system refuses
KILL = "SIGKILL"
FOR_EVER = "+"
EACH_MAX = int(os.environ.get("TINYMLOPS_PLACES", 1000 if FULL else 2))  # places a kind of call and fault
RUN_S = 60
TRIES = 5
LIVES_AT_ONCE = 6
COUNTED_LIVES = 4
T = TypeVar("T")


def package(version: str) -> bytes:
    """A small model that needs no engine."""
    manifest = replace(manifest_of(version=version), format="linear")
    return build_package(manifest, {"model.npz": linear_arrays(np.eye(2, 3), np.zeros(2))}, make_signer())


@dataclass
class Life:
    """What a device said of its life."""

    code: int
    acked: dict[tuple[str, str, int], int] = field(default_factory=dict)
    settled: dict[tuple[str, str], int] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    predicted: tuple[int, int] | None = None
    ended: bool = False

    def read(self, text: str) -> None:
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            if word == "acked":
                stream, epoch, seq, number = rest.split()
                self.acked[stream, epoch, int(seq)] = int(number)
            elif word == "settled":
                stream, epoch, seq = rest.split()
                self.settled[stream, epoch] = int(seq)
            elif word == "predicted":
                count, _, wanted = rest.split()
                self.predicted = int(count), int(wanted)
            elif word in ("installed", "error", "bug"):
                {"installed": self.installed, "error": self.errors, "bug": self.bugs}[word].append(rest)
            elif word == "end":
                self.ended = True


def prepare(folder: Path) -> None:
    write_keys(folder / "data" / "trust", make_signer())
    (folder / "first.tlm").write_bytes(package("1.0.0"))
    (folder / "second.tlm").write_bytes(package("2.0.0"))
    (folder / "device.toml").write_text(
        '[device]\ndata = "data"\n[journal]\ncommit_interval_s = 0.0\n[models.gesture]\npackage = "first.tlm"\n'
    )


def live(folder: Path, *strace: str) -> Life:
    """A life under strace, which comes when all is imported; its log is in the folder."""
    command = [sys.executable, faulted.__file__, str(folder / "device.toml"), str(folder / "second.tlm")]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "up\n"
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-y", "-o", str(folder / "strace.log"), *strace, "-p", str(process.pid)]
        )
        wait_until_traced(process.pid)
        output, errors = process.communicate("go\n", timeout=RUN_S)
        tracer.wait(RUN_S)
    life = Life(process.returncode)
    life.read(output)
    assert "Traceback" not in errors, errors
    return life


def wait_until_traced(pid: int) -> None:
    end = time.monotonic() + RUN_S
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end, "strace does not come"
        time.sleep(0.005)


def calls_of_a_life(folder: Path) -> dict[str, int]:
    """How often each kind of call is made at least, in the thread of the device that makes it most often.

    Which records share a commit, and so a write, is a matter of time: the least of several lives is what every one has.
    """
    if not folder.exists():
        prepare(folder)
    found = []
    for number in range(COUNTED_LIVES):
        copy = folder.with_name(f"{folder.name}-{number}")
        shutil.copytree(folder, copy)
        found.append(counted(copy))
    return {call: min(counts[call] for counts in found) for call in ERRORS}


def counted(folder: Path) -> dict[str, int]:
    """The calls of one life without faults."""
    life = live(folder, "-e", f"trace=execve,{','.join(ERRORS)}")
    assert life.code == 0 and life.ended and not life.errors and not life.bugs
    assert life.predicted == (2 * faulted.STEPS, 2 * faulted.STEPS) and life.installed == ["1.0.0", "2.0.0"]
    assert len(life.acked) == 3 * faulted.STEPS
    counts: Counter[tuple[str, int]] = Counter()
    touching, programs = set(), set()
    for line in (folder / "strace.log").read_text(errors="replace").splitlines():
        if not (found := re.match(r"(\d+) +(\w+)\(", line)):
            continue
        thread, call = int(found[1]), found[2]
        if call == "execve":
            programs.add(thread)  # the main thread, and the package's probes
            continue
        counts[call, thread] += 1
        if str(folder / "data") in line:
            touching.add(thread)
    threads = touching - programs
    return {call: max((counts[call, thread] for thread in threads), default=0) for call in ERRORS}


def places(count: int) -> Iterator[int]:
    """All of 1 to count, or some that are spread over them."""
    if count <= EACH_MAX:
        yield from range(1, count + 1)
        return
    for index in range(EACH_MAX):
        yield 1 + index * (count - 1) // (EACH_MAX - 1)  # the first and the last among them


def at_once(one: Callable[[T], object], plans: Sequence[T]) -> None:
    """Several lives beside each other: most of a life that meets a fault is waiting for what does not come."""
    with ThreadPoolExecutor(LIVES_AT_ONCE) as pool:
        for future in [pool.submit(one, plan) for plan in plans]:
            future.result()


def check(folder: Path, life: Life) -> None:
    """Open the device again, without faults: what it said is true."""
    with Device.open(folder / "device.toml", background=False) as device:
        for (stream, epoch, seq), number in life.acked.items():
            if seq <= life.settled.get((stream, epoch), 0):
                continue
            records = device.journal.read(stream, 10_000, 64 << 20)  # type: ignore[arg-type]
            found = {(record.epoch, record.seq): record for record in records}
            assert (epoch, seq) in found, f"lost: {stream} {epoch} {seq}"
            assert found[epoch, seq].payload["n"] == number
        ids = [
            (stream, record.epoch, record.seq)
            for stream in ("events", "details")
            for record in device.journal.read(stream, 10_000, 64 << 20)  # type: ignore[arg-type]
        ]
        assert len(ids) == len(set(ids))
        model = device.model("gesture")
        assert model.manifest.version in ("1.0.0", "2.0.0")
        if "2.0.0" in life.installed:
            assert model.manifest.version == "2.0.0"
        assert model.infer([1.0, 2.0, 3.0]).label
    assert not life.bugs, life.bugs
    for error in life.errors:
        assert re.match(r"(Config|Device|Model|JournalFull|Server|Timeout)\w*Error", error), error
    if life.ended and life.predicted is not None:
        assert life.predicted[0] == life.predicted[1], "a prediction failed because of the disk"


def live_until_reached(
    folder: Path, call: str, fault: str, place: int, how: str, before: Path | None = None
) -> Life | None:
    """A life that met the fault; how calls are shared among a commit's writes differs a little from life to life."""
    what = f"signal={fault}" if fault == KILL else f"error={fault}"
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            prepare(folder)
        else:
            shutil.copytree(before, folder)
        life = live(folder, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={place}{how}")
        log = (folder / "strace.log").read_text(errors="replace")
        if "(INJECTED)" in log or "killed by SIGKILL" in log:
            return life
    return None


def test_every_fault_at_every_call(tmp_path: Path, report: Callable[..., None]) -> None:
    counts = calls_of_a_life(tmp_path / "plain")
    assert all(counts[call] >= 1 for call in ("write", "fsync", "fdatasync", "openat", "rename"))
    plans = [
        (call, fault, place, how)
        for call, count in counts.items()
        for how, faults in (("", (*ERRORS[call], KILL)), (FOR_EVER, ERRORS[call]))
        for fault in faults
        for place in places(count)
    ]
    missed: list[str] = []
    wrong: list[str] = []

    def one(plan: tuple[str, str, int, str]) -> None:
        folder = tmp_path / "-".join(map(str, plan))
        if (life := live_until_reached(folder, *plan)) is None:
            missed.append(folder.name)
            return
        try:
            check(folder, life)
        except Exception as error:  # all of them are wanted, not the first alone
            wrong.append(f"{folder.name}: {type(error).__name__}: {error}")
            return
        shutil.rmtree(folder)

    at_once(one, plans)
    report(
        "faults of system calls (EIO, ENOSPC, EROFS once and for ever, SIGKILL)",
        faults=len(plans),
        reached=len(plans) - len(missed),
        wrong=len(wrong),
        **({"places_of_a_call_at_most": EACH_MAX} if max(counts.values()) > EACH_MAX else {}),
        **{f"calls_of_{call}": count for call, count in counts.items() if count},
    )
    assert wrong == [], "\n".join(wrong)
    assert missed == []


def test_a_disk_that_is_full_from_any_call_on_stops_no_prediction(tmp_path: Path, report: Callable[..., None]) -> None:
    """On a device that has a model, in its trial: every prediction is made, whatever else the disk refuses."""
    before = tmp_path / "before"
    prepare(before)
    Device.open(before / "device.toml", background=False).close()
    counts = calls_of_a_life(Path(shutil.copytree(before, tmp_path / "plain")))
    plans = [(call, place) for call in FILLED for place in places(counts[call])]
    missed: list[str] = []
    predictions: list[int] = []

    def one(plan: tuple[str, int]) -> None:
        call, place = plan
        folder = tmp_path / f"{call}-{place}"
        if (life := live_until_reached(folder, call, "ENOSPC", place, FOR_EVER, before)) is None:
            missed.append(folder.name)
            return
        assert life.ended and not life.bugs, f"{folder.name}: {life}"
        assert life.predicted == (2 * faulted.STEPS, 2 * faulted.STEPS), f"{folder.name}: {life}"
        predictions.append(life.predicted[0])
        check(folder, life)
        shutil.rmtree(folder)

    at_once(one, plans)
    report("a disk that is full from any call on", faults=len(plans), predictions=sum(predictions), missed=len(missed))
    assert len(plans) > len(FILLED) and missed == []
