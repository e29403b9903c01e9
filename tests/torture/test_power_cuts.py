"""The power goes after every change of a file: what was promised is there, a valid model runs, nothing wrong is read.

A scenario's system calls are recorded once, and each state of the disk that POSIX allows after each of them is laid out
in a folder and opened by the real code: see tests/support/powercut.py. By default some 700 states, with
TINYMLOPS_TORTURE=1 more than 10,000. The control forgets every fsync and must lose something.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import ManualClock
from models import make_package
from powercut import VARIANTS, Disk, Op, lay_out, record, said_before, victim
from powered import LIMITS, PACKAGES, configure, predict, probed_here, text_of
from tinylcm import Device
from tinylcm.errors import TinyLCMError
from tinylcm.journal import Journal
from tinylcm.package import parse_package
from tinylcm.types import Record

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs Debian's strace")

FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))
STATES = {"journal": 8000, "again": 1200, "slots": 1500} if FULL else {"journal": 500, "again": 60, "slots": 140}
CONTROL_STATES = 300 if FULL else 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: every state is written and synced."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name).resolve()


def traced(name: str, folder: Path) -> list[Op]:
    root = folder / "traced"
    root.mkdir(exist_ok=True)
    return record(victim(name, root), root, folder / "trace")


def cuts(ops: list[Op], wanted: int) -> Iterator[tuple[int, str, int]]:
    """Where to cut, and which state: each change once before any twice, and every variant as often as the others."""
    changes = [index for index, op in enumerate(ops, 1) if op.kind != "said"]
    every = [(cut, variant, seed) for seed in range(40) for variant in VARIANTS for cut in changes]
    plain = [item for item in every if item[1].startswith("torn") or item[2] == 0]  # only torn ones differ by seed
    chance = random.Random(1)
    if wanted < len(changes) * len(VARIANTS):
        chance.shuffle(plain)
        first: dict[int, tuple[int, str, int]] = {}
        for item in plain:
            first.setdefault(item[0], item)
        plain = [*first.values(), *(item for item in plain if first[item[0]] != item)]
    yield from plain[:wanted]


# The journal


def promises(said: list[Any]) -> tuple[dict[str, dict[tuple[str, int], int]], dict[str, set[tuple[str, int]]]]:
    """The records that the journal has promised to keep, by stream, and those that a server had by then."""
    durable: dict[str, dict[tuple[str, int], int]] = {"events": {}, "details": {}}
    settled: dict[str, set[tuple[str, int]]] = {"events": set(), "details": set()}
    for line in said:
        if "durable" in line:
            stream, epoch, seq, number = line["durable"]
            durable[stream][epoch, seq] = number
        if "acknowledging" in line:
            stream, epoch, seq = line["acknowledging"]
            order = list(durable[stream])
            settled[stream] |= set(order[: order.index((epoch, seq)) + 1]) if (epoch, seq) in order else {(epoch, seq)}
    return durable, settled


def problems(folder: Path, said: list[Any]) -> Counter[str]:
    """What is wrong with a journal that was found in this state."""
    found: Counter[str] = Counter()
    durable, settled = promises(said)
    with Journal.open(folder, LIMITS, ManualClock()) as journal:
        journal.flush(20)
        for stream in ("events", "details"):
            records = journal.read(stream, 1 << 20, 1 << 30)  # type: ignore[arg-type]
            ids = [(record.epoch, record.seq) for record in records]
            found["twice"] += len(ids) - len(set(ids))
            found["wrong"] += sum(is_wrong(record, durable[stream]) for record in records)
            gone = durable[stream].keys() - settled[stream] - set(ids)
            given_up, damaged = declared(records)
            found["lost"] += len(gone - given_up) + (len(gone & given_up) if stream == "events" else 0)
            found["called damaged"] += len(gone & damaged - given_up)
            found["settled again"] += len(settled[stream] & set(ids))  # allowed: the server knows them
    return found


def is_wrong(record: Record, durable: dict[tuple[str, int], int]) -> bool:
    if record.type == "gap":
        return False
    number = record.payload["n"]
    known = durable.get((record.epoch, record.seq), number)
    return known != number or record.payload["text"] != text_of(int(str(number)))


def declared(records: list[Record]) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Ids that gap records say were given up for room, and those that they call damaged."""
    ranges: dict[bool, set[tuple[str, int]]] = {True: set(), False: set()}
    for gap in records:
        if gap.type == "gap":
            payload: dict[str, Any] = dict(gap.payload)
            seqs = range(payload["from_seq"], payload["to_seq"] + 1)
            ranges[payload["reason"] in ("dropped", "merged")] |= {(payload["epoch"], seq) for seq in seqs}
    return ranges[True], ranges[False]


def judge(
    ops: list[Op], folder: Path, wanted: int, before: tuple[Any, ...] = (), *, syncs: bool = True
) -> Counter[str]:
    total: Counter[str] = Counter()
    for cut, variant, seed in cuts(ops, wanted):
        state = lay_out(Disk(ops[:cut], syncs=syncs).files(variant, seed), folder / "state")
        said = [*before, *said_before(ops, cut)]
        found = problems(state, said)
        total += found
        total["states"] += 1
        if syncs:
            bad = {name: count for name, count in found.items() if name != "settled again" and count}
            assert not bad, f"after change {cut} ({ops[cut - 1].kind}), {variant} {seed}: {bad}"
    return total


def test_no_promised_record_is_lost_wherever_the_power_goes(folder: Path, report: Callable[..., None]) -> None:
    ops = traced("journal", folder)
    durable, settled = promises(said_before(ops, len(ops)))
    assert all(len(durable[stream]) > 50 and len(settled[stream]) > 5 for stream in durable)
    assert Disk(ops).files("everything", 0) == contents(folder / "traced")
    total = judge(ops, folder, STATES["journal"])
    report(
        "power cut at every change of the journal",
        states=total["states"], changes=sum(op.kind != "said" for op in ops),
        records_promised=sum(map(len, durable.values())), lost=total["lost"], wrong=total["wrong"] + total["twice"],
    )  # fmt: skip


def test_no_promised_record_is_lost_when_the_power_goes_in_the_recovery_too(
    folder: Path, report: Callable[..., None]
) -> None:
    ops = traced("journal", folder)
    chance, total, cut_states = random.Random(2), Counter[str](), 12 if FULL else 4
    changes = [index for index, op in enumerate(ops, 1) if op.kind in ("write", "create", "rename", "unlink")]
    for cut in chance.sample(changes, cut_states):
        variant = chance.choice(VARIANTS)
        first = folder / f"first-{cut}"
        lay_out(Disk(ops[:cut]).files(variant, cut), first)
        start = contents(first)
        again = record(victim("reopen", first), first, folder / "trace again")
        # What lay there when the second run began is on the disk: it had survived the first cut.
        base = [Op("mkdir", path=path) for path, data in start.items() if data is None]
        total += judge_again(base, start, again, folder, said_before(ops, cut), STATES["again"] // cut_states)
    report(
        "power cut in the recovery from a power cut", states=total["states"], lost=total["lost"], wrong=total["wrong"]
    )


def judge_again(
    base: list[Op], start: dict[str, bytes | None], ops: list[Op], folder: Path, said: list[Any], wanted: int
) -> Counter[str]:
    prefix, inodes = list(base), {}
    for number, (path, data) in enumerate((item for item in start.items() if item[1] is not None), 1 << 20):
        inodes[path] = number
        prefix += [Op("create", number, path), Op("write", number, data=data or b""), Op("sync", number)]
    folders = {"", *(op.path for op in base)}
    prefix += [Op("sync folder", path=path) for path in folders]
    total: Counter[str] = Counter()
    known = renumbered(ops, inodes)
    for cut, variant, seed in cuts(known, wanted):
        state = lay_out(Disk([*prefix, *known[:cut]]).files(variant, seed), folder / "state")
        found = problems(state, [*said, *said_before(known, cut)])
        total += found
        total["states"] += 1
        bad = {name: count for name, count in found.items() if name != "settled again" and count}
        assert not bad, f"in the recovery, after change {cut} ({known[cut - 1].kind}), {variant} {seed}: {bad}"
    return total


def renumbered(ops: list[Op], inodes: dict[str, int]) -> list[Op]:
    """The changes of a run that found files there: what it opened without making it is one of them."""
    names: dict[int, int] = {}
    changed = []
    for op in ops:
        if op.kind == "create" and op.path in inodes:
            names[op.inode] = inodes[op.path]
            continue
        changed.append(Op(op.kind, names.get(op.inode, op.inode), op.path, op.target, op.offset, op.data, op.said))
    return changed


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_control_without_fsync_loses_records(folder: Path, report: Callable[..., None]) -> None:
    ops = traced("journal", folder)
    total = judge(ops, folder, CONTROL_STATES, syncs=False)
    assert total["lost"] > 0
    report("the control: the same without fsync", states=total["states"], lost=total["lost"])


# The slots


def judge_slots(ops: list[Op], folder: Path, wanted: int, *, syncs: bool = True) -> Counter[str]:
    """What is wrong with the states that a device's folder may be in; with syncs the first wrong one ends it."""
    begin = next(index for index, op in enumerate(ops) if op.kind == "said")
    shas = {
        parse_package(make_package(version=version, **changes), None).sha256: version  # type: ignore[arg-type]
        for version, changes in PACKAGES.items()
    }
    total: Counter[str] = Counter()
    with probed_here():
        for cut, variant, seed in cuts(ops, wanted):
            if cut <= begin:
                continue  # the device's keys are being laid down
            state = lay_out(Disk(ops[:cut], syncs=syncs).files(variant, seed), folder / "state")
            found = slot_problems(state, said_before(ops, cut), shas)
            total += found
            total["states"] += 1
            assert not (syncs and found), f"after change {cut} ({ops[cut - 1].kind}), {variant} {seed}: {found}"
    return total


def test_a_valid_model_runs_wherever_the_power_goes_and_never_one_below_the_floor(
    folder: Path, report: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    ops = traced("slots", folder)
    total = judge_slots(ops, folder, STATES["slots"])
    report(
        "power cut at every change of a device's update, rollback and revocation",
        states=total["states"], changes=sum(op.kind != "said" for op in ops),
        without_a_valid_model=total["without a valid model"], below_the_floor=total["below the floor"],
    )  # fmt: skip


def test_the_control_without_fsync_loses_models(
    folder: Path, report: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    total = judge_slots(traced("slots", folder), folder, CONTROL_STATES, syncs=False)
    assert total["without a valid model"] > 0
    report(
        "the control of the slots: the same without fsync",
        states=total["states"], without_a_valid_model=total["without a valid model"],
    )  # fmt: skip


def slot_problems(state: Path, said: list[Any], shas: dict[str, str]) -> Counter[str]:
    """What is wrong with a device that is opened on this state."""
    ended = [line for line in said if "ended" in line]
    allowed = {line["ended"] for line in ended[-1:]} | {said[-1]["begun"] for _ in said[-1:] if "begun" in said[-1]}
    if "2.0.0" in allowed:
        allowed.add("1.0.0")  # what came with 2.0.0 has revoked 1.1.0, and it is not there yet
    found: Counter[str] = Counter()
    try:
        with Device.open(configure(state), clock=ManualClock(), background=False) as device:
            slot = device.slots().get("gesture")
            if not ended and (slot is None or slot.active is None):
                return found  # nothing had been promised yet
            if slot is None or slot.active is None or predict(device) not in allowed:
                return Counter({"without a valid model": 1})
            version = shas[slot.active.sha256]
            found["another than the slot's"] += version not in allowed
            floor = max([line["floor"] for line in ended], default=0)
            found["below the floor"] += slot.floor < floor
            counter = int(PACKAGES[version]["security_counter"])  # type: ignore[call-overload]
            found["below the floor"] += counter < max(floor, slot.floor)
    except TinyLCMError:
        return Counter({"without a valid model": 1})
    return +found
